//! The ports of a node towards one destination run out: what Prometheus has recorded of it, drawn from
//! its API.

use crate::shell;
use anyhow::{Context as _, Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;
use serde_json::Value;
use std::fs;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use testbed::{Agent, AgentOptions, Bed, ConfigVolume, EchoServer, Prometheus, Scraped, wait_for};

/// The node's ports, few, so that a minute is enough.
const PORTS: &str = "40000-40199";

/// Connections that the pod tries to open, one each [`PACE`]: more than there are ports.
const CONNECTIONS: usize = 280;
const PACE: Duration = Duration::from_millis(250);

/// Time after which a connection that was not refused has failed.
const PATIENCE: Duration = Duration::from_secs(5);

const SIZE: (u32, u32) = (900, 460);

/// A curve: its query, caption and colour.
const CURVES: [(&str, &str, RGBColor); 2] = [
    (
        "max(netdp_destination_ports_used_ratio)",
        "netdp_destination_ports_used_ratio",
        RGBColor(0, 114, 178),
    ),
    (
        "sum(rate(netdp_dropped_packets_total{reason=\"no_free_port\"}[5s]))",
        "netdp_dropped_packets_total{reason=\"no_free_port\"}, per second",
        RGBColor(213, 94, 0),
    ),
];

/// Has the ports run out, and draws the graph.
pub fn draw(netdp: &Path, directory: &Path) -> Result<()> {
    let bed = Bed::builder()
        .uplink("eth0", &["10.1.0.10/16"])
        .pods(1, &["172.16.0.0/16"])
        .build()?;
    let server = bed.server(0, &["10.2.0.1/16"])?;
    let near = bed.neighbour(0, &["10.1.0.20/16"])?;
    let to = SocketAddr::from((server.v4()?, 443));
    let _echo = EchoServer::start(&server, to)?;
    let config = ConfigVolume::new("nonMasqueradeCIDRs: [172.16.0.0/16]\n")?;
    let options = AgentOptions::new(netdp)
        .config(config.path())
        .arg("--to-ports")
        .arg(PORTS)
        .arg("--metrics-listen=10.1.0.10:10269");
    let _agent = Agent::start(&bed.node, options)?;
    let scraped = Scraped {
        agents: vec![("10.1.0.10:10269".parse()?, "node-a".to_owned())],
        rules: vec![shell::root().join("deploy/monitoring/alerts.yaml")],
    };
    let prometheus = Prometheus::start(&near, IpAddr::from(near.v4()?), &scraped)?;
    wait_for(PATIENCE * 8, "Prometheus to scrape the agent", || {
        prometheus
            .query("netdp_ready == 1")
            .is_ok_and(|ready| !ready.is_empty())
    })?;
    let begin = now()?;
    let mut open = Vec::new();
    for _ in 0..CONNECTIONS {
        open.push(
            bed.pods[0]
                .enter(|| TcpStream::connect_timeout(&to, PATIENCE))?
                .ok(),
        );
        std::thread::sleep(PACE);
    }
    let end = now()?;
    let range = |query| recorded(&prometheus, query, begin, end);
    let fires = range("ALERTS{alertname=\"NetdpPortsExhausted\",alertstate=\"firing\"}")?;
    let (fires, _) = *fires.first().context("the alert did not fire")?;
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        area.fill(&WHITE).map_err(failed)?;
        let areas = area.split_evenly((CURVES.len(), 1));
        for ((query, caption, colour), area) in CURVES.iter().zip(&areas) {
            curve(area, caption, *colour, &range(query)?, (end - begin, fires))?;
        }
        area.present().map_err(failed)?;
    }
    let path = directory.join("exhaustion.svg");
    fs::write(&path, svg).with_context(|| format!("writing {}", path.display()))?;
    println!("{}", path.display());
    Ok(())
}

fn now() -> Result<f64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64())
}

/// Returns what Prometheus has recorded for a query: seconds since the beginning, and the value.
fn recorded(prometheus: &Prometheus, query: &str, begin: f64, end: f64) -> Result<Vec<(f64, f64)>> {
    let data = prometheus.get(
        "query_range",
        &[
            ("query", query),
            ("start", &begin.to_string()),
            ("end", &end.to_string()),
            ("step", "1"),
        ],
    )?;
    let points = data["result"][0]["values"].as_array();
    let point = |point: &Value| -> Option<(f64, f64)> {
        let value = point[1].as_str()?.parse().ok()?;
        Some((point[0].as_f64()? - begin, value))
    };
    Ok(points.into_iter().flatten().filter_map(point).collect())
}

/// Draws a curve over the seconds, with a line where the alert fires.
fn curve<DB: DrawingBackend>(
    area: &DrawingArea<DB, Shift>,
    caption: &str,
    colour: RGBColor,
    points: &[(f64, f64)],
    (seconds, fires): (f64, f64),
) -> Result<()> {
    let top = points.iter().map(|(_, value)| *value).fold(1.0, f64::max) * 1.1;
    let mut chart = ChartBuilder::on(area)
        .caption(caption, ("sans-serif", 19))
        .margin(10)
        .x_label_area_size(28)
        .y_label_area_size(45)
        .build_cartesian_2d(0.0..seconds, 0.0..top)
        .map_err(failed)?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .label_style(("sans-serif", 15))
        .x_label_formatter(&|x| format!("{x:.0} s"))
        .y_label_formatter(&|y| format!("{y:.1}"))
        .draw()
        .map_err(failed)?;
    chart
        .draw_series(LineSeries::new(
            points.iter().copied(),
            colour.stroke_width(2),
        ))
        .map_err(failed)?;
    let line = [(fires, 0.0), (fires, top)];
    chart
        .draw_series(LineSeries::new(line, RED.stroke_width(1)))
        .map_err(failed)?;
    let style = ("sans-serif", 16).into_font().color(&RED);
    let words = Text::new(
        "NetdpPortsExhausted fires",
        (fires + 0.5, top * 0.15),
        style,
    );
    chart.draw_series(std::iter::once(words)).map_err(failed)?;
    Ok(())
}

fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("drawing the graph: {error}")
}
