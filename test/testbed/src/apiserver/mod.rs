//! A real Kubernetes API server with etcd, on the loopback of a namespace.

mod pki;

use super::kube_programs;
use super::netns::Netns;
use super::process::{Running, output, wait_for};
use super::workdir::WorkDir;
use anyhow::{Context as _, Result, ensure};
use pki::Pki;
use std::fmt::Write as _;
use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Port of the API server.
pub const API_PORT: u16 = 6443;

/// Ports of etcd for clients and for peers.
const ETCD_PORTS: [u16; 2] = [2379, 2380];

/// Timeout for the API server to serve, on a machine busy with other tests. An idle one takes 3 s.
const PATIENCE: Duration = Duration::from_secs(90);

/// Token of a cluster administrator.
const ADMIN: &str = "netdp-testbed-admin";

/// CIDR of Services, and its first address, which is that of the API.
const SERVICES: &str = "10.96.0.0/16";
const API_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);

/// etcd and kube-apiserver with RBAC and with certificates and tokens of their own. Dropping this
/// ends both. Each has its own namespace, so ports never conflict: any number can run on one
/// machine.
#[derive(Debug)]
pub struct ApiServer {
    // Dropped first: the server must end before its storage.
    server: Running,
    etcd: Running,
    ns: Netns,
    dir: WorkDir,
    audience: Audience,
}

/// The clients for which an API server is reachable.
#[derive(Debug, Clone)]
pub enum Audience {
    /// Programs in the server's namespace.
    Namespace,
    /// A cluster: nodes connect to this address of the server's namespace, pods to the Service
    /// `kubernetes`. Each node has a token.
    Cluster(Ipv4Addr, Vec<NodeToken>),
}

/// Credentials of a node.
#[derive(Debug, Clone)]
pub struct NodeToken {
    /// Name of the node.
    pub node: String,
    /// Bearer token of the node.
    pub token: String,
}

impl ApiServer {
    /// Starts both in the namespace; waits until the API serves and the default RBAC roles exist.
    pub fn start(ns: &Netns) -> Result<Self> {
        Self::start_for(ns, Audience::Namespace)
    }

    /// Starts both as [`start`](Self::start) does, reachable for `audience`.
    pub fn start_for(ns: &Netns, audience: Audience) -> Result<Self> {
        let dir = WorkDir::new("apiserver")?;
        let mut addresses = vec![Ipv4Addr::LOCALHOST];
        let mut tokens = format!("{ADMIN},admin,admin,system:masters\n");
        if let Audience::Cluster(address, nodes) = &audience {
            addresses.extend([*address, API_SERVICE]);
            for NodeToken { node, token } in nodes {
                let _ = writeln!(
                    tokens,
                    "{token},system:node:{node},system:node:{node},system:nodes"
                );
            }
        }
        Pki::new(&addresses)?.write(dir.path())?;
        write_private(&dir.path().join("tokens.csv"), &tokens)?;
        let etcd = start_etcd(ns, &dir)?;
        let server = start_server(ns, &dir, &audience)?;
        let mut started = Self {
            server,
            etcd,
            ns: ns.clone(),
            dir,
            audience,
        };
        started.write_kubeconfig("admin", &started.url(), ADMIN)?;
        started.wait_ready()?;
        Ok(started)
    }

    /// Returns the URL of the API from inside its namespace.
    #[must_use]
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{API_PORT}")
    }

    /// Returns the path of the CA certificate that signed the server's.
    #[must_use]
    pub fn ca(&self) -> PathBuf {
        self.dir.path().join("ca.crt")
    }

    /// Returns the path of the private key that signs ServiceAccount tokens.
    #[must_use]
    pub fn accounts_key(&self) -> PathBuf {
        self.dir.path().join("accounts.key")
    }

    /// Returns the path of a cluster administrator's kubeconfig.
    #[must_use]
    pub fn admin_kubeconfig(&self) -> PathBuf {
        self.dir.path().join("admin.kubeconfig")
    }

    /// Runs kubectl as the administrator in the server's namespace and returns its standard output.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.ns.command(kube_programs::find("kubectl")?);
        command
            .arg("--kubeconfig")
            .arg(self.admin_kubeconfig())
            // The shared cache is keyed by address, and many servers have the same one.
            .arg("--cache-dir")
            .arg(self.dir.path().join("cache"))
            .args(arguments);
        output(&mut command)
    }

    /// Applies manifests, given as YAML.
    pub fn apply(&self, manifests: &str) -> Result<String> {
        let file = self.dir.path().join("apply.yaml");
        fs::write(&file, manifests)?;
        self.kubectl(&["apply", "-f", &file.to_string_lossy()])
            .with_context(|| format!("applying\n{manifests}"))
    }

    /// Returns a token of an existing ServiceAccount, valid for a day.
    pub fn token(&self, namespace: &str, account: &str) -> Result<String> {
        let request = self.dir.path().join("token-request.json");
        fs::write(
            &request,
            r#"{"apiVersion":"authentication.k8s.io/v1","kind":"TokenRequest","spec":{"expirationSeconds":86400}}"#,
        )?;
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
        let answer = self.kubectl(&["create", "--raw", &path, "-f", &request.to_string_lossy()])?;
        let answer: serde_json::Value = serde_json::from_str(&answer)?;
        let token = answer["status"]["token"].as_str();
        token
            .map(str::to_owned)
            .with_context(|| format!("no token in {answer}"))
    }

    /// Writes a kubeconfig `NAME.kubeconfig` for a token and a server at `url`: [`url`](Self::url),
    /// or that of a proxy.
    pub fn write_kubeconfig(&self, name: &str, url: &str, token: &str) -> Result<PathBuf> {
        let path = self.dir.path().join(format!("{name}.kubeconfig"));
        let ca = self.ca();
        write_private(
            &path,
            &format!(
                "apiVersion: v1\n\
                 kind: Config\n\
                 current-context: test\n\
                 contexts:\n\
                 - name: test\n  context: {{cluster: test, user: test}}\n\
                 clusters:\n\
                 - name: test\n  cluster: {{server: \"{url}\", certificate-authority: \"{}\"}}\n\
                 users:\n\
                 - name: test\n  user: {{token: \"{token}\"}}\n",
                ca.display()
            ),
        )?;
        Ok(path)
    }

    /// Kills the server with SIGKILL; etcd keeps its data.
    pub fn kill(&mut self) -> Result<()> {
        self.server.kill9()
    }

    /// Starts the server again after [`kill`](Self::kill).
    pub fn restart(&mut self) -> Result<()> {
        self.server.kill9()?;
        self.server = start_server(&self.ns, &self.dir, &self.audience)?;
        self.wait_ready()
    }

    /// Kills both, discards all stored data and starts both: a cluster restored from nothing, whose
    /// resource versions start over.
    pub fn restart_empty(&mut self) -> Result<()> {
        self.server.kill9()?;
        self.etcd.kill9()?;
        fs::remove_dir_all(self.dir.path().join("etcd"))?;
        self.etcd = start_etcd(&self.ns, &self.dir)?;
        self.restart()
    }

    fn wait_ready(&mut self) -> Result<()> {
        let url = format!("{}/readyz", self.url());
        let ca = self.ca().to_string_lossy().into_owned();
        let bearer = format!("Authorization: Bearer {ADMIN}");
        let mut ended = None;
        wait_for(PATIENCE, "the API server to be ready", || {
            ended = self.server.exit_status().ok().flatten();
            let ask = [
                "curl", "-sf", "-m", "5", "--cacert", &ca, "-H", &bearer, &url,
            ];
            ended.is_some() || self.ns.run(&ask).is_ok()
        })
        .with_context(|| format!("kube-apiserver wrote:{}", self.server.written()))?;
        ensure!(
            ended.is_none(),
            "kube-apiserver ended: {ended:?}{}\netcd wrote:{}",
            self.server.written(),
            self.etcd.written()
        );
        Ok(())
    }
}

fn start_etcd(ns: &Netns, dir: &WorkDir) -> Result<Running> {
    let [clients, peers] = ETCD_PORTS.map(|port| format!("http://127.0.0.1:{port}"));
    let mut command = ns.command(kube_programs::find("etcd")?);
    command
        .arg("--data-dir")
        .arg(dir.path().join("etcd"))
        .args(["--listen-client-urls", &clients])
        .args(["--advertise-client-urls", &clients])
        .args(["--listen-peer-urls", &peers])
        .args(["--initial-advertise-peer-urls", &peers])
        .args(["--initial-cluster", &format!("default={peers}")])
        .args(["--log-level", "warn"])
        // The data need not survive a crash of the machine.
        .arg("--unsafe-no-fsync");
    let etcd = Running::start(command)?;
    ns.wait_listening(ETCD_PORTS[0])
        .with_context(|| format!("etcd wrote:{}", etcd.written()))?;
    Ok(etcd)
}

fn start_server(ns: &Netns, dir: &WorkDir, audience: &Audience) -> Result<Running> {
    let at = |name: &str| dir.path().join(name);
    let mut command: Command = ns.command(kube_programs::find("kube-apiserver")?);
    match audience {
        // No endpoint reconciler: the address is not published.
        Audience::Namespace => command.args([
            "--bind-address=127.0.0.1",
            "--advertise-address=192.0.2.1",
            "--endpoint-reconciler-type=none",
        ]),
        Audience::Cluster(address, _) => command
            .arg("--bind-address=0.0.0.0")
            .arg(format!("--advertise-address={address}"))
            .arg("--kubelet-preferred-address-types=InternalIP")
            .arg("--enable-admission-plugins=NodeRestriction,Priority"),
    };
    command
        .arg(format!("--etcd-servers=http://127.0.0.1:{}", ETCD_PORTS[0]))
        .arg(format!("--secure-port={API_PORT}"))
        .arg(format!("--service-cluster-ip-range={SERVICES}"))
        .arg("--authorization-mode=Node,RBAC")
        .args(["--anonymous-auth=false", "--allow-privileged=true", "--v=0"])
        .arg("--service-account-issuer=https://kubernetes.default.svc");
    for (flag, file) in [
        ("--tls-cert-file", "server.crt"),
        ("--tls-private-key-file", "server.key"),
        ("--client-ca-file", "ca.crt"),
        ("--token-auth-file", "tokens.csv"),
        ("--service-account-key-file", "accounts.pub"),
        ("--service-account-signing-key-file", "accounts.key"),
        ("--cert-dir", "."),
    ] {
        command.arg(flag).arg(at(file));
    }
    Running::start(command)
}

/// Writes a file that only its owner can read.
pub(super) fn write_private(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o600)))
        .with_context(|| format!("writing {}", path.display()))
}
