//! Network namespaces that end with their thread.

use std::future::Future;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use tokio::time::timeout;

use super::super::{Monitor, Snapshot, local_addresses};

/// Timeout, much longer than any notification takes.
pub(super) const DEADLINE: Duration = Duration::from_secs(10);
/// Longer than the interval between reports.
const QUIET: Duration = Duration::from_millis(700);

/// Runs a test on a thread and a runtime of its own, in a new network
/// namespace. Commands that the test starts inherit the thread's namespace.
pub(super) fn in_namespace<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect(
            "this test makes a network namespace: run it as root (CAP_SYS_ADMIN and CAP_NET_ADMIN)",
        );
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(test());
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs `ip` with one command a line.
pub(super) fn ip(commands: &str) {
    run_ip(&["-batch", "-"], commands);
}

/// Runs `ip -6` with one command a line: it does not take the family of rules from their addresses.
pub(super) fn ip6(commands: &str) {
    run_ip(&["-6", "-batch", "-"], commands);
}

fn run_ip(arguments: &[&str], commands: &str) {
    let mut child = Command::new("ip")
        .args(arguments)
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("this test needs ip (Debian package iproute2)");
    child
        .stdin
        .take()
        .unwrap()
        .write_all(commands.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "ip failed: {stderr}\nof:\n{commands}"
    );
}

/// An uplink with two addresses and a second link, both up and running. `addrgenmode none` prevents
/// automatic link-local addresses.
pub(super) const NODE: &str = "\
link set lo up
link add up0 type veth peer name up0peer
link add up1 type veth peer name up1peer
link set up0 addrgenmode none
link set up0peer addrgenmode none
link set up1 addrgenmode none
link set up1peer addrgenmode none
link set up0peer up
link set up1peer up
link set up0 up
link set up1 up
addr add 192.0.2.10/24 dev up0
addr add 10.1.0.4/16 dev up0
addr add 10.1.0.5/16 dev up0
addr add 2001:db8::4/64 dev up0 nodad
addr add fd00::4/64 dev up0 nodad
addr add 10.9.0.1 peer 10.9.0.2/32 dev up1
";

/// Waits until the network is in the expected state.
pub(super) async fn until(
    monitor: &mut Monitor,
    what: &str,
    wanted: impl Fn(&Snapshot) -> bool,
) -> Snapshot {
    let mut last = Snapshot::default();
    let wait = async {
        loop {
            last = monitor.snapshot().await.unwrap();
            if wanted(&last) {
                return;
            }
            monitor.changed().await.unwrap();
        }
    };
    let reached = timeout(DEADLINE, wait).await;
    assert!(
        reached.is_ok(),
        "not within {DEADLINE:?}: {what}; last seen: {last:#?}"
    );
    last
}

pub(super) fn running(snapshot: &Snapshot, name: &str) -> bool {
    snapshot
        .links
        .iter()
        .any(|link| link.name == name && link.up && link.running)
}

pub(super) fn has_addr(snapshot: &Snapshot, addr: &str) -> bool {
    local_addresses(snapshot).contains(&addr.parse().unwrap())
}

/// Waits until all changes so far are reported, so that they cannot pass for the notification of
/// the next one.
pub(super) async fn settle(monitor: &mut Monitor) {
    let filter = timeout(DEADLINE, async {
        while timeout(QUIET, monitor.changed()).await.is_ok() {}
    });
    filter.await.expect("notifications do not end");
}

/// Waits for one report.
pub(super) async fn expect_change(monitor: &mut Monitor, what: &str) {
    let changed = timeout(DEADLINE, monitor.changed()).await;
    changed
        .unwrap_or_else(|_| panic!("no notification of {what}"))
        .unwrap();
}
