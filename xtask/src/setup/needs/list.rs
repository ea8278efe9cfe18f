//! The list of dependencies.

use super::super::cargo_programs::{BPF_LINKER, CYCLONEDX};
use super::{Need, Part, Probe, Source};
use crate::go_libraries::{GoLibrary, HELM, KUSTOMIZE};

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

/// Returns the need for a program whose package would start a service.
const fn unpacked(what: &'static str, why: &'static str) -> Need {
    Need {
        what,
        why,
        source: Source::Unpacked,
        probe: Probe::Unpacked(what),
        part: Part::Run,
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
    program(
        &["tshark"],
        "tshark",
        "reads captures and messages in tests",
    ),
    program(&["tmux"], "tmux", "runs netdp top in a terminal in tests"),
    file(
        "python3-rich",
        "/usr/lib/python3/dist-packages/rich",
        "python3-rich",
        "draws pictures of terminals for the documentation",
        Part::Run,
    ),
    program(
        &["chromium"],
        "chromium",
        "opens the agent's page in tests, and draws its pictures",
    ),
    file(
        "the font Cantarell",
        "/usr/share/fonts/opentype/cantarell",
        "fonts-cantarell",
        "words of the page in pictures",
        Part::Run,
    ),
    file(
        "the font DejaVu Sans Mono",
        "/usr/share/fonts/truetype/dejavu/DejaVuSansMono.ttf",
        "fonts-dejavu-core",
        "numbers and codes of the page in pictures",
        Part::Run,
    ),
    program(&["tidy"], "tidy", "validates the page in tests"),
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
    unpacked("prometheus", "scrapes agents in tests"),
    unpacked("promtool", "tests metrics, rules and alerts"),
    unpacked("prometheus-alertmanager", "sends alerts in tests"),
];
