//! Claims from libcni's cache of results, which container runtimes write for each interface of a pod
//! and remove with it (github.com/containernetworking/cni, libcni/api.go).

use super::index::Claim;
use crate::private;
use crate::time::milliseconds;
use serde_json::Value;
use std::collections::HashMap;
use std::fs::{self, Metadata};
use std::io::{self, Read as _};
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// The most bytes of a file; usual ones have one to four thousand.
const LARGEST: u64 = 256 * 1024;

/// The most files of a directory that are read; a node has some hundred pods.
const MOST_FILES: usize = 16_384;

/// The most addresses of one file.
const MOST_ADDRESSES: usize = 16;

/// The longest namespace, name or UID that Kubernetes accepts, in bytes.
const LONGEST: usize = 253;

/// Returns the claims in a cache directory. Files that are not what libcni writes, or that others than
/// root could have written, are left out.
///
/// # Errors
/// Returns an error if the directory can't be listed.
pub(super) fn read(dir: &Path) -> io::Result<Vec<Claim>> {
    let entries = fs::read_dir(dir)?.take(MOST_FILES).flatten();
    Ok(entries.flat_map(|entry| claims(&entry.path())).collect())
}

/// Returns the claims in a file; none if it is not to be trusted or not understood.
fn claims(path: &Path) -> Vec<Claim> {
    let Ok(file) = private::open(path) else {
        return Vec::new();
    };
    let Ok(metadata) = file.metadata() else {
        return Vec::new();
    };
    let is_safe = private::is_trusted(metadata.uid()) && metadata.mode() & 0o022 == 0;
    if !is_safe || metadata.len() > LARGEST {
        return Vec::new();
    }
    let mut bytes = Vec::new();
    if file.take(LARGEST).read_to_end(&mut bytes).is_err() {
        return Vec::new();
    }
    parse(&bytes, begin(&metadata)).unwrap_or_default()
}

/// Returns the time at which the file was created, or last written where the file system does not
/// tell, in milliseconds since 1970.
fn begin(metadata: &Metadata) -> u64 {
    let time = metadata.created().or_else(|_| metadata.modified());
    time.map_or(0, milliseconds)
}

/// Reads what libcni has cached; `None` if it is something else, or names no pod: caches from before
/// `cniCacheV1` hold the result alone.
fn parse(bytes: &[u8], from: u64) -> Option<Vec<Claim>> {
    let cached: Value = serde_json::from_slice(bytes).ok()?;
    let arguments: HashMap<&str, &str> = cached
        .get("cniArgs")?
        .as_array()?
        .iter()
        .filter_map(|pair| Some((pair.get(0)?.as_str()?, pair.get(1)?.as_str()?)))
        .collect();
    let argument = |name: &str| {
        let value = arguments.get(name)?;
        is_name(value).then(|| (*value).to_owned())
    };
    let namespace = argument("K8S_POD_NAMESPACE")?;
    let name = argument("K8S_POD_NAME")?;
    let uid = argument("K8S_POD_UID");
    let addresses = addresses(cached.get("result")?).into_iter();
    Some(Claim::all(
        &namespace,
        &name,
        uid.as_deref(),
        addresses,
        from,
    ))
}

/// Returns the addresses in a result: `ips` since version 0.3.0 of the CNI specification, `ip4` and
/// `ip6` before.
fn addresses(result: &Value) -> Vec<IpAddr> {
    let ips = result.get("ips").and_then(Value::as_array);
    let new = ips.into_iter().flatten().map(|ip| ip.get("address"));
    let old = ["ip4", "ip6"].map(|key| result.get(key).and_then(|ip| ip.get("ip")));
    let texts = new.chain(old).flatten().filter_map(Value::as_str);
    let parsed = texts.filter_map(|text| {
        let address = text.split('/').next()?;
        address.parse::<IpAddr>().ok()
    });
    // A pod's loopback interface is cached as well.
    let others = parsed.filter(|address| !address.is_loopback() && !address.is_unspecified());
    others.take(MOST_ADDRESSES).collect()
}

/// Reports whether a text has the characters of Kubernetes' names and UIDs only.
fn is_name(text: &str) -> bool {
    let is_of_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    !text.is_empty() && text.len() <= LONGEST && text.bytes().all(is_of_name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::now_milliseconds;
    use std::os::unix::fs::{PermissionsExt as _, chown, symlink};

    const CACHED: &str = r#"{
        "kind": "cniCacheV1", "containerId": "5d9", "config": "e30=", "ifName": "eth0",
        "networkName": "pods",
        "cniArgs": [["IgnoreUnknown", "1"], ["K8S_POD_NAMESPACE", "shop"],
                    ["K8S_POD_NAME", "cart-5d9"], ["K8S_POD_INFRA_CONTAINER_ID", "5d9"],
                    ["K8S_POD_UID", "3c1d"]],
        "capabilityArgs": {"dns": {"Servers": ["10.96.0.10"]}},
        "result": {"cniVersion": "1.0.0", "dns": {}, "interfaces": [{"name": "cni0"}],
                   "ips": [{"address": "172.16.0.2/24", "gateway": "172.16.0.1", "interface": 2},
                           {"address": "fd00:172::2/64"}, {"address": "127.0.0.1/8"}]}
    }"#;

    #[test]
    fn a_cached_result_is_a_claim_for_each_address() {
        let claims = parse(CACHED.as_bytes(), 7).unwrap();
        let addresses: Vec<_> = claims.iter().map(|it| it.address.to_string()).collect();
        assert_eq!(addresses, ["172.16.0.2", "fd00:172::2"]);
        assert_eq!((claims[0].namespace.as_str(), claims[0].from), ("shop", 7));
        assert_eq!(claims[1].name, "cart-5d9");
        assert_eq!(claims[1].uid.as_deref(), Some("3c1d"));
    }

    #[test]
    fn other_forms_are_read_as_far_as_they_name_a_pod() {
        let without_uid = CACHED.replace("K8S_POD_UID", "OTHER");
        assert_eq!(parse(without_uid.as_bytes(), 0).unwrap()[0].uid, None);
        let old = CACHED.replace("\"ips\":", "\"ip4\": {\"ip\": \"10.1.2.3/24\"}, \"x\":");
        let claims = parse(old.as_bytes(), 0).unwrap();
        assert_eq!(claims[0].address.to_string(), "10.1.2.3");
        for none in [
            r#"{"cniVersion": "0.3.1", "ips": [{"address": "10.0.0.2/24"}]}"#,
            r#"{"cniArgs": {"K8S_POD_NAME": "a"}, "result": {}}"#,
            r#"{"cniArgs": [["K8S_POD_NAME", "a"]], "result": {}}"#,
            "[]",
            "null",
            "",
        ] {
            assert_eq!(parse(none.as_bytes(), 0), None, "{none}");
        }
    }

    #[test]
    fn names_that_kubernetes_would_not_accept_are_refused() {
        for name in ["a\\u001b[2J", "a b", "", "a,b", "\\u202e", &"a".repeat(254)] {
            let cached = CACHED.replace("cart-5d9", name);
            assert_eq!(parse(cached.as_bytes(), 0), None, "{name:?}");
        }
    }

    #[test]
    fn nothing_in_the_directory_hurts() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            fs::write(&path, bytes).unwrap();
            path
        };
        write("pods-5d9-eth0", CACHED.as_bytes());
        write("broken", &CACHED.as_bytes()[..100]);
        write("deep", "[".repeat(100_000).as_bytes());
        write("binary", &[0xff; 4096]);
        let padding = " ".repeat(usize::try_from(LARGEST).unwrap());
        write("huge", format!("{CACHED}{padding}").as_bytes());
        let elsewhere = tempfile::tempdir().unwrap();
        let target = elsewhere.path().join("target");
        fs::write(&target, CACHED.replace("cart-5d9", "linked")).unwrap();
        symlink(&target, dir.path().join("link")).unwrap();
        nix::unistd::mkfifo(&dir.path().join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        fs::create_dir(dir.path().join("directory")).unwrap();
        let others = write("others", CACHED.replace("cart-5d9", "others").as_bytes());
        chown(&others, Some(65_534), None).unwrap();
        let writable = write(
            "writable",
            CACHED.replace("cart-5d9", "writable").as_bytes(),
        );
        fs::set_permissions(&writable, fs::Permissions::from_mode(0o666)).unwrap();

        let claims = read(dir.path()).unwrap();
        let names: Vec<_> = claims.iter().map(|it| it.name.as_str()).collect();
        assert_eq!(names, ["cart-5d9", "cart-5d9"]);
        let now = now_milliseconds();
        assert!(claims[0].from.abs_diff(now) < 60_000, "{}", claims[0].from);
        assert!(read(&dir.path().join("missing")).is_err());
    }
}
