//! Nodes, pods and servers as network namespaces with real programs in them.
//!
//! Everything created here is named `netdp-<pid>-<seq>-<role>` and removed when its value is
//! dropped. What a killed process left behind is removed by the next process that creates a
//! namespace; nothing else on the machine is touched.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use testbed::{Bed, HttpServer};
//!
//! let bed = Bed::builder()
//!     .uplink("eth0", &["10.1.0.10/16"])
//!     .pods(1, &["172.16.0.0/24"])
//!     .build()?;
//! let near = bed.neighbour(0, &["10.1.0.20/16"])?;
//! let http = HttpServer::start(&near, (near.v4()?, 80))?;
//! bed.pods[0].run(&["curl", "-sf", "http://10.1.0.20/health"])?;
//! assert_eq!(http.seen(), [bed.pods[0].v4()?]);
//! # Ok(())
//! # }
//! ```

mod agent;
#[cfg(feature = "apiserver")]
mod apiserver;
mod bed;
mod browser;
pub mod cgroups;
mod config_volume;
mod containerd;
mod earlier;
mod echo;
mod http;
pub mod kube_programs;
mod leaks;
mod link;
pub mod migration;
mod names;
mod netns;
mod no_bpf;
mod pings;
mod process;
mod prometheus;
mod redis;
mod service;
mod terminal;
mod tracking;
pub mod unpacked;
mod workdir;

pub use agent::{Agent, AgentOptions, binary_from_env};
#[cfg(feature = "apiserver")]
pub use apiserver::{API_PORT, ApiServer, Audience, NodeToken};
pub use bed::{Bed, BedBuilder, Host, Uplink, last_host};
pub use browser::{Browser, Viewport};
pub use config_volume::ConfigVolume;
pub use containerd::{ContainerOptions, Containerd};
pub use earlier::netdp_of_layout_1;
pub use echo::{EchoClient, EchoServer, UdpEchoServer, seen, udp_ask};
pub use http::HttpServer;
pub use leaks::Leaks;
pub use link::veth;
pub use names::{is_root, remove_all, require_root, sweep};
pub use netns::Netns;
pub use pings::{Pinged, Pings};
pub use process::{Running, output, wait_for, wait_some};
pub use prometheus::{Prometheus, Scraped};
pub use redis::RedisServer;
pub use terminal::Terminal;
pub use tracking::ensure_tracked;
pub use workdir::WorkDir;
