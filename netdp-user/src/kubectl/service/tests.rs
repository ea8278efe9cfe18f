use super::{Ask, Found, Known, Slice, addresses};
use crate::kubectl::destination::{Destination, Named};
use k8s_openapi::api::core::v1::Service;
use serde_json::{Value, json};
use std::net::IpAddr;

/// A Service with two named ports, of both families.
fn db() -> Value {
    json!({
        "metadata": {"name": "db", "namespace": "shop"},
        "spec": {
            "clusterIP": "10.96.0.12",
            "clusterIPs": ["10.96.0.12", "fd00:96::12"],
            "externalIPs": ["192.0.2.7"],
            "ports": [
                {"name": "sql", "port": 80, "targetPort": "sql"},
                {"name": "dns", "port": 53, "protocol": "UDP"},
                {"name": "dns-tcp", "port": 53},
            ],
        },
        "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.8"}, {"hostname": "db.example"}]}},
    })
}

fn slices() -> Value {
    let ports = json!([
        {"name": "sql", "port": 5432},
        {"name": "dns", "port": 5353, "protocol": "UDP"},
        {"name": "dns-tcp", "port": 5353},
    ]);
    json!([
        {
            "endpoints": [
                {"addresses": ["10.2.0.1"], "hostname": "db-0", "nodeName": "node-a"},
                {"addresses": ["10.2.0.2"], "conditions": {"ready": true}, "nodeName": "node-b"},
                {"addresses": ["10.2.0.3"], "conditions": {"ready": false}},
            ],
            "ports": ports,
        },
        {"endpoints": [{"addresses": ["fd00:2::1"], "nodeName": "node-b"}], "ports": ports},
        {"endpoints": null, "ports": null},
    ])
}

fn asked(
    service: &Value,
    slices: &Value,
    word: &str,
    protocol: Option<&str>,
) -> Result<Found, String> {
    let service: Service = serde_json::from_value(service.clone()).unwrap();
    let slices: Vec<Slice> = serde_json::from_value(slices.clone()).unwrap();
    let known = Known::of(&service).unwrap();
    let (named, address) = match Destination::parse(word).unwrap() {
        Destination::Service(named) => (named, None),
        Destination::Address(address, port) => {
            let named = Named {
                namespace: None,
                name: "db".into(),
                endpoint: None,
                port: port.map(super::PortName::Number),
            };
            (named, Some(address))
        }
        Destination::Other => panic!("{word}"),
    };
    let ask = Ask {
        namespace: None,
        protocol,
        node: "node-a",
    };
    let found = known.stands_for(&named, address, &slices, &ask);
    found.map_err(|err| format!("{err:#}"))
}

#[test]
fn a_service_stands_for_the_ready_endpoints_of_both_families() {
    let found = asked(&db(), &slices(), "svc/db:sql", None).unwrap();
    let ends = ["10.2.0.1:5432", "10.2.0.2:5432", "[fd00:2::1]:5432"];
    assert_eq!(found.destinations, ends);
    let services = ["shop/db:sql=10.96.0.12:80", "shop/db:sql=[fd00:96::12]:80"];
    assert_eq!(found.services, services);
    assert_eq!(found.protocol.as_deref(), Some("tcp"));
    assert_eq!(asked(&db(), &slices(), "svc/db:80", None).unwrap(), found);
    // By one of its addresses, only those of the family.
    let found = asked(&db(), &slices(), "[fd00:96::12]:80", None).unwrap();
    assert_eq!(found.destinations, ["[fd00:2::1]:5432"]);
    assert_eq!(found.services, ["shop/db:sql=[fd00:96::12]:80"]);
}

#[test]
fn of_ports_with_one_number_the_protocol_decides() {
    let of = |word: &str, protocol| {
        let found = asked(&db(), &slices(), word, protocol).unwrap();
        (found.services[0].clone(), found.protocol.unwrap())
    };
    let tcp = ("shop/db:dns-tcp=10.96.0.12:53".to_owned(), "tcp".to_owned());
    let udp = ("shop/db:dns=10.96.0.12:53".to_owned(), "udp".to_owned());
    assert_eq!(of("svc/db:53", None), tcp);
    assert_eq!(of("svc/db:53", Some("UDP")), udp);
    assert_eq!(of("svc/db:dns", None), udp);
    for (word, protocol, told) in [
        (
            "svc/db",
            None,
            "several ports: write shop/db:PORT with one of sql 80/tcp",
        ),
        (
            "svc/db:81",
            None,
            "has no port 81, but sql 80/tcp, dns 53/udp",
        ),
        ("svc/db:sql", Some("17"), "has no port sql of udp"),
        ("svc/db:sql", Some("icmp"), "tcp, udp and sctp only"),
    ] {
        let err = asked(&db(), &slices(), word, protocol).unwrap_err();
        assert!(err.contains(told), "{err}");
    }
}

#[test]
fn the_only_port_needs_no_name() {
    let mut service = db();
    service["spec"]["ports"] = json!([{"port": 80}]);
    let slices = json!([{"endpoints": [{"addresses": ["10.2.0.1"]}], "ports": [{"name": "", "port": 8080}]}]);
    let found = asked(&service, &slices, "svc/db", None).unwrap();
    assert_eq!(found.destinations, ["10.2.0.1:8080"]);
    assert_eq!(found.services[0], "shop/db=10.96.0.12:80");
}

#[test]
fn a_headless_service_stands_for_its_endpoints_on_the_port_that_is_asked_for() {
    let mut service = db();
    service["spec"]["clusterIP"] = "None".into();
    service["spec"]["clusterIPs"] = json!(["None"]);
    let found = asked(&service, &slices(), "svc/db:80", None).unwrap();
    let ends = ["10.2.0.1:80", "10.2.0.2:80", "[fd00:2::1]:80"];
    assert_eq!(found.destinations, ends);
    assert!(found.services.is_empty());
    assert!(found.notes[0].contains("a headless Service"), "{found:?}");
    let of = |word| asked(&service, &slices(), word, None).unwrap().destinations;
    assert_eq!(of("svc/db:9999")[0], "10.2.0.1:9999");
    assert_eq!(of("svc/db:sql")[0], "10.2.0.1:5432");
    assert_eq!(of("db-0.db.shop.svc:sql"), ["10.2.0.1:5432"]);
    let err = asked(&service, &slices(), "db-7.db.shop.svc:sql", None).unwrap_err();
    assert!(err.contains("no endpoint db-7"), "{err}");
    let err = asked(&db(), &slices(), "db-0.db.shop.svc:sql", None).unwrap_err();
    assert!(err.contains("is not headless"), "{err}");
}

#[test]
fn without_a_ready_endpoint_it_says_so() {
    let none = json!([{
        "endpoints": [{"addresses": ["10.2.0.3"], "conditions": {"ready": false}}],
        "ports": [{"name": "sql", "port": 5432}],
    }]);
    let err = asked(&db(), &none, "svc/db:sql", None).unwrap_err();
    assert!(
        err.contains("no endpoint that is ready; 1 are not ready"),
        "{err}"
    );
    let mut v4 = slices();
    v4.as_array_mut().unwrap().remove(0);
    let err = asked(&db(), &v4, "10.96.0.12:80", None).unwrap_err();
    assert!(
        err.contains("no endpoint of the family of 10.96.0.12"),
        "{err}"
    );
}

#[test]
fn without_a_ready_endpoint_those_that_terminate_and_serve_are_used() {
    let last = json!({"ready": false, "serving": true, "terminating": true});
    let mut slices = slices();
    slices[0]["endpoints"][2]["conditions"] = last;
    let found = asked(&db(), &slices, "10.96.0.12:80", None).unwrap();
    assert_eq!(found.destinations, ["10.2.0.1:5432", "10.2.0.2:5432"]);
    // Each family by itself: there is a ready one of IPv6.
    for number in [0, 1] {
        slices[0]["endpoints"][number]["conditions"] =
            json!({"ready": false, "serving": true, "terminating": false});
    }
    let found = asked(&db(), &slices, "10.96.0.12:80", None).unwrap();
    assert_eq!(found.destinations, ["10.2.0.3:5432"]);
    let mut headless = db();
    headless["spec"]["clusterIP"] = "None".into();
    headless["spec"]["clusterIPs"] = json!(["None"]);
    let found = asked(&headless, &slices, "svc/db:sql", None).unwrap();
    assert_eq!(found.destinations, ["[fd00:2::1]:5432"]);
}

#[test]
fn a_local_service_has_the_endpoints_of_the_node_alone() {
    let mut service = db();
    service["spec"]["internalTrafficPolicy"] = "Local".into();
    let found = asked(&service, &slices(), "svc/db:sql", None).unwrap();
    assert_eq!(found.destinations, ["10.2.0.1:5432"]);
    // That is about the Service's own address.
    let found = asked(&service, &slices(), "192.0.2.7:80", None).unwrap();
    assert_eq!(found.destinations.len(), 2);
    let mut elsewhere = slices();
    elsewhere[0]["endpoints"][0]["nodeName"] = "node-c".into();
    let err = asked(&service, &elsewhere, "svc/db:sql", None).unwrap_err();
    assert!(err.contains("on node-a; 3 are on other nodes"), "{err}");
}

#[test]
fn many_endpoints_are_not_all_explained() {
    let ends: Vec<_> = (0..40)
        .map(|i| json!({"addresses": [format!("10.2.0.{i}")]}))
        .collect();
    let slices = json!([{"endpoints": ends, "ports": [{"name": "sql", "port": 5432}]}]);
    let found = asked(&db(), &slices, "svc/db:sql", None).unwrap();
    assert_eq!(found.destinations.len(), 32);
    assert!(
        found.notes[0].contains("the first 32 of its 40"),
        "{found:?}"
    );
}

#[test]
fn a_service_is_known_by_all_its_addresses() {
    let service: Service = serde_json::from_value(db()).unwrap();
    let all = ["10.96.0.12", "192.0.2.7", "192.0.2.8", "fd00:96::12"];
    let all: Vec<IpAddr> = all.iter().map(|it| it.parse().unwrap()).collect();
    assert_eq!(addresses(&service).into_iter().collect::<Vec<_>>(), all);
}
