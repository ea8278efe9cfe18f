//! Capabilities of this process, and those that the datapath needs and lacks.
//!
//! No others matter: `CAP_SYS_RESOURCE`, for locked memory, was needed until Linux 5.11, and the
//! programs need 5.17. `CAP_SYS_ADMIN` is needed to mount a bpffs; the error of the mount names it.

use anyhow::anyhow;
use aya::programs::ProgramError;
use std::fs;
use std::io;

/// Capabilities that the datapath needs, with the numbers of include/uapi/linux/capability.h.
const NEEDED: [(u32, &str); 3] = [(39, "BPF"), (12, "NET_ADMIN"), (38, "PERFMON")];

/// Number of `CAP_SYS_ADMIN`, which implies the first and the last of them.
const SYS_ADMIN: u32 = 21;

/// Returns the missing capabilities without `CAP_`; `None` if they cannot be determined.
pub fn missing() -> Option<Vec<&'static str>> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    missing_of(&status)
}

fn missing_of(status: &str) -> Option<Vec<&'static str>> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let mask = u64::from_str_radix(line?.trim(), 16).ok()?;
    let has = |number: u32| mask & (1 << number) != 0;
    let by_other = |name: &str| name != "NET_ADMIN" && has(SYS_ADMIN);
    let missing = NEEDED
        .iter()
        .filter(|(number, name)| !has(*number) && !by_other(name));
    Some(missing.map(|(_, name)| *name).collect())
}

/// Adds to an error the missing capabilities, if they caused it. The verifier's log, which then
/// blames the programs for a missing capability, is omitted.
pub fn explain(error: anyhow::Error) -> anyhow::Error {
    explain_with(error, missing().as_deref())
}

fn explain_with(error: anyhow::Error, missing: Option<&[&str]>) -> anyhow::Error {
    let denied = error.chain().find_map(|cause| {
        let io = cause.downcast_ref::<io::Error>()?;
        (io.kind() == io::ErrorKind::PermissionDenied).then(|| io.to_string())
    });
    let judged = error
        .chain()
        .find_map(|cause| match cause.downcast_ref::<ProgramError>()? {
            ProgramError::LoadError { io_error, .. } => Some(io_error.to_string()),
            _ => None,
        });
    match (missing, denied, judged) {
        (Some(missing @ [_, ..]), Some(what), _) | (Some(missing @ [_, ..]), None, Some(what)) => {
            log::debug!("{error:#}");
            let named: Vec<_> = missing.iter().map(|name| format!("CAP_{name}")).collect();
            let (named, are) = (
                named.join(" and "),
                if missing.len() == 1 { "is" } else { "are" },
            );
            anyhow!(
                "the kernel refused ({what}): {named} {are} missing. netdp needs CAP_BPF, CAP_NET_ADMIN \
                 and CAP_PERFMON, or root. In a pod: securityContext.capabilities.add: [{}] of the \
                 container; under systemd: CapabilityBoundingSet=",
                missing.join(", ")
            )
        }
        (Some([]), Some(_), _) => error.context(
            "the kernel refused, though this process has CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON: \
             find what else forbids bpf(2), such as the container runtime's seccomp profile (the \
             component sys-admin, or sysAdmin: true of the chart, helps there), AppArmor, SELinux",
        ),
        (None, Some(_), _) => error.context(
            "the kernel refused: this needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON, or root",
        ),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_read_from_the_mask() {
        let missing = |mask: &str| missing_of(&format!("Name:\tx\nCapEff:\t{mask}\n"));
        assert_eq!(missing("000001ffffffffff"), Some(vec![]));
        assert_eq!(missing("0000000000000000").unwrap().len(), 3);
        // Mask of SYS_ADMIN and NET_ADMIN.
        assert_eq!(missing("0000000000201000"), Some(vec![]));
        assert_eq!(missing("0000000000200000"), Some(vec!["NET_ADMIN"]));
        // Mask of NET_ADMIN and BPF.
        assert_eq!(missing("0000008000001000"), Some(vec!["PERFMON"]));
        assert_eq!(missing_of("Name:\tx\n"), None);
    }

    #[test]
    fn a_missing_right_is_named_and_nothing_else_is_blamed_on_it() {
        let told = |kind: io::ErrorKind, missing| {
            let error = anyhow::Error::new(io::Error::from(kind)).context("loading the program");
            format!("{:#}", explain_with(error, missing))
        };
        let (denied, other) = (io::ErrorKind::PermissionDenied, io::ErrorKind::InvalidInput);
        let named = told(denied, Some(&["BPF", "PERFMON"]));
        assert!(
            named.contains("CAP_BPF and CAP_PERFMON are missing"),
            "{named}"
        );
        assert!(
            named.contains("capabilities.add: [BPF, PERFMON]"),
            "{named}"
        );
        assert!(told(denied, Some(&[])).contains("seccomp"));
        assert!(told(denied, None).contains("this needs CAP_BPF"));
        for missing in [None, Some(&[][..]), Some(&["BPF"][..])] {
            assert!(told(other, missing).starts_with("loading the program"));
        }
    }
}
