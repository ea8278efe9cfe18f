//! Dependencies of the build, the tests and the demo, and their detection.

use super::cargo_programs::{BPF_LINKER, CYCLONEDX, CargoProgram};
use super::rust_target;
use crate::go_libraries::{GoLibrary, HELM, KUSTOMIZE};
use crate::shell;
use std::path::Path;
use std::process::Command;
use testbed::kube_programs;

/// A dependency that must be on the machine.
#[derive(Debug, Clone, Copy)]
pub struct Need {
    /// Name that is valid on any distribution.
    pub what: &'static str,
    /// Purpose, as messages give it.
    pub why: &'static str,
    source: Source,
    probe: Probe,
    part: Part,
}

/// Source of a dependency.
#[derive(Debug, Clone, Copy)]
enum Source {
    /// A Debian 12 package.
    Package(&'static str),
    /// Installed with `cargo install`.
    Cargo(&'static CargoProgram),
    /// Debian 12's etcd, kubectl and busybox, unpacked.
    Kubernetes,
    /// Debian 12's Kubernetes, built from source.
    KubernetesBuilt,
    /// A PyPI package that contains a library.
    GoLibrary,
    /// Installed with `rustup target add`.
    RustTarget,
}

/// Detection of a dependency.
#[derive(Debug, Clone, Copy)]
enum Probe {
    /// One of these programs is in the path.
    Program(&'static [&'static str]),
    File(&'static str),
    /// A Kubernetes program is where tests look for it.
    Kubernetes(&'static str),
    /// The library of this package is installed.
    GoLibrary(&'static str),
    /// The standard library for static programs is installed.
    RustTarget,
}

/// Part of the work that needs a dependency.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// Compiling the eBPF programs without a nightly toolchain.
    Compiler,
    /// Linking the eBPF programs.
    Linker,
    /// Building the linker from source.
    LinkerBuild,
    /// Building Kubernetes' programs from source.
    KubernetesBuild,
    /// Building the image; also used by tests.
    Image,
    /// Building a release; also used by tests.
    Release,
    /// Running the tests only.
    Run,
    /// Running the demo; also used by tests.
    Demo,
}

impl Need {
    /// Returns its Debian 12 package, if there is one.
    pub fn package(&self) -> Option<&'static str> {
        match self.source {
            Source::Package(name) => Some(name),
            Source::Cargo(_)
            | Source::Kubernetes
            | Source::KubernetesBuilt
            | Source::GoLibrary
            | Source::RustTarget => None,
        }
    }

    /// Reports whether [`kubernetes::install`](super::kubernetes::install) provides it.
    pub fn is_kubernetes(&self) -> bool {
        matches!(self.source, Source::Kubernetes) || self.is_built_kubernetes()
    }

    /// Reports whether it is built from Kubernetes' source.
    pub fn is_built_kubernetes(&self) -> bool {
        matches!(self.source, Source::KubernetesBuilt)
    }

    /// Reports whether only an API server and its tests need it.
    pub fn is_for_api_server(&self) -> bool {
        self.is_kubernetes() || self.part == Part::KubernetesBuild
    }

    /// Reports whether building or running the demo needs it.
    pub fn is_for_demo(&self) -> bool {
        match self.part {
            Part::Compiler | Part::Linker | Part::LinkerBuild | Part::Demo => true,
            Part::KubernetesBuild | Part::Image | Part::Release | Part::Run => false,
        }
    }

    /// Reports whether building the image needs it.
    pub fn is_for_image(&self) -> bool {
        match self.part {
            Part::Compiler | Part::Linker | Part::LinkerBuild | Part::Image => true,
            Part::KubernetesBuild | Part::Release | Part::Run | Part::Demo => false,
        }
    }

    /// Reports whether building a release needs it.
    pub fn is_for_release(&self) -> bool {
        self.is_for_image() || self.part == Part::Release
    }

    /// Returns the program, if cargo installs it.
    pub fn cargo_program(&self) -> Option<&'static CargoProgram> {
        match self.source {
            Source::Cargo(program) => Some(program),
            Source::Package(_)
            | Source::Kubernetes
            | Source::KubernetesBuilt
            | Source::GoLibrary
            | Source::RustTarget => None,
        }
    }

    /// Reports whether [`go_libraries`](super::go_libraries) installs it.
    pub fn is_go_library(&self) -> bool {
        matches!(self.source, Source::GoLibrary)
    }

    /// Reports whether rustup installs it.
    pub fn is_rust_target(&self) -> bool {
        matches!(self.source, Source::RustTarget)
    }

    fn is_there(&self) -> bool {
        match self.probe {
            Probe::Program(any) => any.iter().any(|name| shell::has_program(name)),
            Probe::File(path) => Path::new(path).exists(),
            Probe::Kubernetes(name) => kube_programs::find(name).is_ok(),
            Probe::GoLibrary(package) => {
                GoLibrary::of_package(package).is_ok_and(|library| library.path().is_ok())
            }
            Probe::RustTarget => rust_target::is_there(),
        }
    }
}

/// Returns the need for a program that the demo runs.
const fn shown(any: &'static [&'static str], package: &'static str, why: &'static str) -> Need {
    Need {
        part: Part::Demo,
        ..program(any, package, why)
    }
}

/// Returns the need for a program that builds the image.
const fn packed(any: &'static [&'static str], package: &'static str, why: &'static str) -> Need {
    Need {
        part: Part::Image,
        ..program(any, package, why)
    }
}

const fn program(any: &'static [&'static str], package: &'static str, why: &'static str) -> Need {
    Need {
        what: any[0],
        why,
        source: Source::Package(package),
        probe: Probe::Program(any),
        part: Part::Run,
    }
}

const fn file(
    what: &'static str,
    path: &'static str,
    package: &'static str,
    why: &'static str,
    part: Part,
) -> Need {
    Need {
        what,
        why,
        source: Source::Package(package),
        probe: Probe::File(path),
        part,
    }
}

const fn kubernetes(what: &'static str, why: &'static str) -> Need {
    Need {
        what,
        why,
        source: Source::Kubernetes,
        probe: Probe::Kubernetes(what),
        part: Part::Run,
    }
}

/// Returns the need for a Kubernetes program that Debian has only as source.
const fn built(what: &'static str, why: &'static str) -> Need {
    Need {
        source: Source::KubernetesBuilt,
        ..kubernetes(what, why)
    }
}

const fn go_library(library: GoLibrary, why: &'static str) -> Need {
    Need {
        what: library.what,
        why,
        source: Source::GoLibrary,
        probe: Probe::GoLibrary(library.package),
        part: Part::Run,
    }
}

const fn kubernetes_build(path: &'static str, package: &'static str) -> Need {
    Need {
        what: package,
        why: "building Kubernetes' programs",
        source: Source::Package(package),
        probe: Probe::File(path),
        part: Part::KubernetesBuild,
    }
}

/// All dependencies, in the order of reports.
pub const ALL: &[Need] = &[
    file(
        "a Rust compiler in /usr (rustc-web)",
        "/usr/bin/rustc",
        "rustc-web",
        "compiles the eBPF programs",
        Part::Compiler,
    ),
    file(
        "its cargo in /usr (cargo-web)",
        "/usr/bin/cargo",
        "cargo-web",
        "compiles the eBPF programs",
        Part::Compiler,
    ),
    file(
        "core for bpfel-unknown-none in /usr",
        "/usr/lib/rustlib/bpfel-unknown-none/lib",
        "libstd-rust-web-dev-bpf",
        "Rust's core library for the BPF target",
        Part::Compiler,
    ),
    file(
        "LLVM 22, development files",
        "/usr/lib/llvm-22/bin/llvm-config",
        "llvm-22-dev",
        "bpf-linker is built on it",
        Part::LinkerBuild,
    ),
    file(
        "zstd, development files",
        "/usr/include/zstd.h",
        "libzstd-dev",
        "bpf-linker links it, by way of LLVM",
        Part::LinkerBuild,
    ),
    file(
        "zlib, development files",
        "/usr/include/zlib.h",
        "zlib1g-dev",
        "bpf-linker links it, by way of LLVM",
        Part::LinkerBuild,
    ),
    Need {
        what: "bpf-linker",
        why: "links the eBPF programs",
        source: Source::Cargo(&BPF_LINKER),
        probe: Probe::Program(&["bpf-linker"]),
        part: Part::Linker,
    },
    shown(&["ip"], "iproute2", "makes namespaces, links and routes"),
    shown(&["ss"], "iproute2", "lists sockets"),
    program(&["bpftool"], "bpftool", "reads maps and programs in tests"),
    program(&["strace"], "strace", "kills agents in tests"),
    program(
        &["git"],
        "git",
        "provides the earlier version that tests upgrade from",
    ),
    shown(&["curl"], "curl", "HTTP client in demo and tests"),
    shown(&["ping"], "iputils-ping", "ICMP client in tests"),
    shown(&["redis-cli"], "redis-tools", "Redis client in the demo"),
    shown(
        &["redis-server", "redis-check-rdb"],
        "redis-tools",
        "Redis server in the demo (not as a service)",
    ),
    program(
        &["iperf3"],
        "iperf3",
        "throughput and long transfers in tests",
    ),
    program(&["traceroute"], "traceroute", "finds hops in tests"),
    program(
        &["tracepath"],
        "iputils-tracepath",
        "finds hops and path MTU in tests",
    ),
    program(&["mtr"], "mtr-tiny", "finds hops in tests"),
    program(&["nghttpd"], "nghttp2-server", "HTTP/2 server in tests"),
    program(&["tcpdump"], "tcpdump", "captures packets in tests"),
    program(&["tshark"], "tshark", "decodes the NAT log's IPFIX in tests"),
    program(&["tmux"], "tmux", "runs netdp top in a terminal in tests"),
    file(
        "python3-rich",
        "/usr/lib/python3/dist-packages/rich",
        "python3-rich",
        "draws pictures of terminals for the documentation",
        Part::Run,
    ),
    program(&["ethtool"], "ethtool", "switches offloads in tests"),
    shown(
        &["iptables"],
        "iptables",
        "the demo migrate, and coexistence with kube-proxy in tests",
    ),
    shown(
        &["nft"],
        "nftables",
        "the demo migrate, and coexistence with netfilter in tests",
    ),
    program(
        &["conntrack"],
        "conntrack",
        "inspects netfilter in tests and the bench",
    ),
    program(&["systemd-analyze"], "systemd", "checks the systemd unit"),
    program(
        &["prlimit"],
        "util-linux",
        "limits what an agent may use in tests",
    ),
    program(&["sockperf"], "sockperf", "measures latency in the bench"),
    kubernetes_build("/usr/lib/go-1.19/bin/go", "golang-1.19-go"),
    kubernetes_build("/usr/lib/go-1.19/src/runtime", "golang-1.19-src"),
    kubernetes_build(
        "/usr/share/gocode/src/github.com/modern-go/reflect2",
        "golang-github-modern-go-reflect2-dev",
    ),
    kubernetes_build("/usr/bin/rsync", "rsync"),
    kubernetes_build("/usr/bin/jq", "jq"),
    kubernetes_build("/usr/bin/make", "make"),
    kubernetes_build("/usr/bin/dpkg-source", "dpkg-dev"),
    kubernetes("etcd", "stores for the API server in tests"),
    kubernetes("kubectl", "talks to the API server in tests"),
    built("kube-apiserver", "the API server in tests"),
    Need {
        part: Part::Release,
        ..program(&["pip3"], "python3-pip", "downloads Helm and Kustomize")
    },
    Need {
        part: Part::Release,
        ..go_library(HELM, "packages the chart, and installs it in tests")
    },
    go_library(KUSTOMIZE, "builds the manifests in tests"),
    Need {
        what: "Rust's standard library for musl",
        why: "links the image's program statically",
        source: Source::RustTarget,
        probe: Probe::RustTarget,
        part: Part::Image,
    },
    packed(
        &["musl-gcc"],
        "musl-tools",
        "compiles the C and assembly in the image's program",
    ),
    packed(&["buildah"], "buildah", "builds the image"),
    packed(
        &["mmdebstrap"],
        "mmdebstrap",
        "unpacks Debian's packages for the image",
    ),
    Need {
        what: "cargo-cyclonedx",
        why: "lists the crates in the image",
        source: Source::Cargo(&CYCLONEDX),
        probe: Probe::Program(&["cargo-cyclonedx"]),
        part: Part::Image,
    },
    program(
        &["containerd", "ctr"],
        "containerd",
        "runs the image in tests",
    ),
    program(&["runc"], "runc", "runs the image in tests"),
    built("kube-proxy", "coexistence with kube-proxy in tests"),
    built("kube-controller-manager", "the cluster in demo and tests"),
    built("kube-scheduler", "the cluster in demo and tests"),
    built("kubelet", "the cluster in demo and tests"),
    file(
        "CNI's plugins",
        "/usr/lib/cni/portmap",
        "containernetworking-plugins",
        "networks of pods in the cluster",
        Part::Run,
    ),
    kubernetes("busybox", "programs of pods in the cluster"),
];

/// Returns the dependencies that this machine lacks.
pub fn missing() -> Vec<Need> {
    let linker = shell::has_program("bpf-linker");
    let built = ALL
        .iter()
        .filter(|need| need.is_built_kubernetes())
        .all(Need::is_there);
    let compiler = std::env::var_os("NETDP_EBPF_TOOLCHAIN").is_some() || has_nightly();
    ALL.iter()
        .filter(|need| match need.part {
            // A nightly is only of use with the linker, which is built against the LLVM of the
            // compiler in /usr.
            Part::Compiler => !(compiler && linker),
            Part::LinkerBuild => !linker,
            Part::KubernetesBuild => !built,
            Part::Linker | Part::Image | Part::Release | Part::Run | Part::Demo => true,
        })
        .filter(|need| !need.is_there())
        .copied()
        .collect()
}

/// Reports whether a nightly toolchain can build core for BPF.
fn has_nightly() -> bool {
    let sysroot = Command::new("rustup")
        .args(["run", "nightly", "rustc", "--print", "sysroot"])
        .output();
    sysroot.is_ok_and(|out| {
        out.status.success()
            && Path::new(String::from_utf8_lossy(&out.stdout).trim())
                .join("lib/rustlib/src/rust/library/core")
                .is_dir()
    })
}

#[cfg(test)]
mod tests;
