use super::*;
use crate::go_libraries::HELM;

/// An image needs nothing of Kubernetes; a release also needs Helm.
#[test]
fn the_image_needs_compilers_and_what_packs_it() {
    let besides = |is_for: fn(&Need) -> bool| -> Vec<_> {
        ALL.iter()
            .filter(|need| is_for(need) && !need.is_for_demo())
            .map(|need| need.what)
            .collect()
    };
    let image = [
        "Rust's standard library for musl",
        "musl-gcc",
        "buildah",
        "mmdebstrap",
        "cargo-cyclonedx",
    ];
    assert_eq!(besides(Need::is_for_image), image);
    let mut release = vec!["pip3", HELM.what];
    release.extend(image);
    assert_eq!(besides(Need::is_for_release), release);
}

/// The demo must not install or build dependencies that only tests have.
#[test]
fn the_demo_needs_compilers_and_the_programs_that_it_shows() {
    let programs: Vec<_> = ALL
        .iter()
        .filter(|need| need.part == Part::Demo)
        .map(|need| need.what)
        .collect();
    assert_eq!(
        programs,
        [
            "ip",
            "ss",
            "curl",
            "ping",
            "redis-cli",
            "redis-server",
            "iptables",
            "nft"
        ]
    );
    for need in ALL.iter().filter(|need| need.is_for_demo()) {
        assert!(
            !need.is_for_api_server() && !need.is_go_library() && !need.is_rust_target(),
            "{need:?}"
        );
    }
}
