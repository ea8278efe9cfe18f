//! Names of the products that netdp replaces: by these it finds their configuration and their
//! rules, and accepts their command lines.

/// ip-masq-agent (kubernetes-sigs/ip-masq-agent at e3000864).
pub(crate) mod masq_agent {
    /// Name of the product, its program and its ConfigMap.
    pub(crate) const NAME: &str = "ip-masq-agent";

    /// Key in its ConfigMap.
    pub(crate) const KEY: &str = "config";

    /// Prefix of the keys that Azure's fork reads.
    pub(crate) const AZURE_KEY_PREFIX: &str = "ip-masq";

    /// Default name of its chain.
    pub(crate) const CHAIN: &str = "IP-MASQ-AGENT";

    /// Comment of rules that return.
    pub(crate) const RETURN_COMMENT: &str =
        "ip-masq-agent: local traffic is not subject to MASQUERADE";

    /// Comment of rules that masquerade.
    pub(crate) const MASQUERADE_COMMENT: &str =
        "ip-masq-agent: outbound traffic is subject to MASQUERADE (must be last in chain)";

    /// Beginning of the comment of the jump to the chain.
    pub(crate) const JUMP_COMMENT: &str = "ip-masq-agent: ensure nat POSTROUTING directs all non-LOCAL destination traffic to our custom";
}

/// k8s-custom-iptables (its run.sh at 48ec4ca).
pub(crate) mod custom_iptables {
    /// Name of the product and its ConfigMap.
    pub(crate) const NAME: &str = "k8s-custom-iptables";

    /// Key in its ConfigMap, which is the name of its file in a volume.
    pub(crate) const KEY: &str = "nat.rules";

    /// Suffix of the names of further files in its format.
    pub(crate) const SUFFIX: &str = ".rules";

    /// Directory in which its manifest mounts the ConfigMap.
    pub(crate) const DIRECTORY: &str = "/cfg";

    /// The script of its image, and the path by which its manifest runs it.
    pub(crate) const SCRIPT: &str = "run.sh";
    pub(crate) const SCRIPT_PATH: &str = "/run.sh";

    /// Beginning of the comments by which it marks its rules.
    pub(crate) const COMMENT_PREFIX: &str = "custom-iptables-";
}
