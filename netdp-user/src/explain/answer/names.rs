//! Names of pods.

use crate::pods::Names;
use anyhow::{Result, ensure};
use std::net::IpAddr;

/// A source of the names of this node's pods.
pub(crate) trait PodNames {
    /// Returns the addresses of a pod, given as `namespace/pod`.
    ///
    /// # Errors
    /// Returns an error if no such pod is known.
    fn addresses_of(&self, pod: &str) -> Result<Vec<IpAddr>>;

    /// Returns the pod that has an address, as `namespace/pod`.
    fn name_of(&self, address: IpAddr) -> Option<String>;
}

impl PodNames for Names {
    fn addresses_of(&self, pod: &str) -> Result<Vec<IpAddr>> {
        let mut known = 0;
        let mut addresses = Vec::new();
        for claim in self.claims().filter(|claim| claim.until.is_none()) {
            known += 1;
            let name = pod.split_once('/');
            if name == Some((&claim.namespace, &claim.name)) {
                addresses.push(claim.address);
            }
        }
        ensure!(
            known > 0,
            "{pod}: the names of pods are not known here (see --cni-dir); give the pod's address, as \
             `kubectl get pod -o wide` prints it"
        );
        ensure!(
            !addresses.is_empty(),
            "{pod}: no pod of this node has that name; give NAMESPACE/POD or the pod's address"
        );
        addresses.sort_unstable();
        addresses.dedup();
        Ok(addresses)
    }

    fn name_of(&self, address: IpAddr) -> Option<String> {
        self.owner_now(address).map(|owner| self.describe(owner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::Claim;

    fn claim(address: &str, name: &str, until: Option<u64>) -> Claim {
        Claim {
            address: address.parse().unwrap(),
            namespace: "shop".into(),
            name: name.into(),
            uid: None,
            from: 1_000,
            until,
        }
    }

    #[test]
    fn a_pod_is_known_by_its_name_as_long_as_it_is_there() {
        let names = Names::of(
            [
                claim("172.16.0.2", "cart", None),
                claim("fd00:1::2", "cart", None),
                claim("172.16.0.3", "gone", Some(2_000)),
            ],
            9_000,
        );
        let addresses = names.addresses_of("shop/cart").unwrap();
        assert_eq!(
            addresses,
            ["172.16.0.2", "fd00:1::2"].map(|it| it.parse::<IpAddr>().unwrap())
        );
        for unknown in ["shop/gone", "shop/other", "cart"] {
            let told = names.addresses_of(unknown).unwrap_err().to_string();
            assert!(told.contains("no pod of this node"), "{told}");
        }
        assert_eq!(
            names.name_of("172.16.0.2".parse().unwrap()).unwrap(),
            "shop/cart"
        );
        assert_eq!(names.name_of("172.16.0.3".parse().unwrap()), None);
        let nothing = Names::default().addresses_of("shop/cart").unwrap_err();
        assert!(nothing.to_string().contains("not known here"), "{nothing}");
    }
}
