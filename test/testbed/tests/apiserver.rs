//! Checks that the API server of the tests is a real one.

use anyhow::Result;
use testbed::{ApiServer, Netns};

#[test]
fn two_serve_at_once_and_keep_apart() -> Result<()> {
    let (first, second) = (Netns::new("api")?, Netns::new("api")?);
    let (first, second) = (ApiServer::start(&first)?, ApiServer::start(&second)?);
    let map = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: one, namespace: kube-system}\n";
    first.apply(map)?;
    let maps = ["-n", "kube-system", "get", "configmaps", "-o", "name"];
    assert!(first.kubectl(&maps)?.contains("configmap/one"));
    assert!(!second.kubectl(&maps)?.contains("configmap/one"));
    Ok(())
}

#[test]
fn a_service_account_may_only_what_rbac_says() -> Result<()> {
    let ns = Netns::new("api")?;
    let api = ApiServer::start(&ns)?;
    api.apply(
        "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: reader, namespace: default}\n",
    )?;
    api.kubectl(&[
        "create",
        "role",
        "read",
        "--verb=get",
        "--resource=configmaps",
    ])?;
    let binding = ["create", "rolebinding", "read", "--role=read"];
    api.kubectl(&[&binding[..], &["--serviceaccount=default:reader"]].concat())?;
    api.kubectl(&["create", "configmap", "one", "--from-literal=a=b"])?;
    let token = api.token("default", "reader")?;
    let ask = |path: &str| -> Result<String> {
        let (ca, url) = (api.ca(), format!("{}{path}", api.url()));
        let (ca, bearer) = (
            ca.to_string_lossy(),
            format!("Authorization: Bearer {token}"),
        );
        let code = ["-s", "-o", "/dev/null", "-w", "%{http_code}"];
        ns.run(
            &[
                &["curl"][..],
                &code,
                &["--cacert", &ca, "-H", &bearer, &url],
            ]
            .concat(),
        )
    };
    assert_eq!(ask("/api/v1/namespaces/default/configmaps/one")?, "200");
    assert_eq!(ask("/api/v1/namespaces/default/configmaps")?, "403");
    assert_eq!(ask("/api/v1/nodes")?, "403");
    Ok(())
}

#[test]
fn a_server_comes_back_with_what_it_had_or_with_nothing() -> Result<()> {
    let ns = Netns::new("api")?;
    let mut api = ApiServer::start(&ns)?;
    api.kubectl(&["create", "configmap", "one"])?;
    api.kill()?;
    assert!(api.kubectl(&["get", "configmap", "one"]).is_err());
    api.restart()?;
    api.kubectl(&["get", "configmap", "one"])?;
    api.restart_empty()?;
    assert!(api.kubectl(&["get", "configmap", "one"]).is_err());
    Ok(())
}
