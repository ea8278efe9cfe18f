//! The agent's page and `/api/v1`, in a real browser and by curl.

mod events;

use crate::common::clients::{Tcp, from_port};
use crate::common::{Echo, NETDP, POLICY, POLICY_V4, SOON, World, echoes, options, start_agent};
use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use testbed::{
    Agent, AgentOptions, Bed, Browser, ConfigVolume, Netns, Running, Viewport, output, wait_for,
    wait_some,
};

const AT: &str = "127.0.0.1:10268";

const LISTEN: [&str; 2] = ["--enable-ipv6", "--http-listen=127.0.0.1:10268"];

/// Limit of a request, so that one without an answer fails: longer than the server's own.
const LIMIT: &str = "20";

/// The ratio of the lowest contrast of all texts of a page, and that text (WCAG 2.1, 1.4.3).
const CONTRAST: &str = r"(() => {
  const parts = color => color.match(/[\d.]+/g).map(Number);
  const light = color => {
    const [r, g, b] = parts(color).map(it => it / 255).map(
      it => it <= .03928 ? it / 12.92 : ((it + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const ground = it => {
    const color = getComputedStyle(it).backgroundColor;
    const [, , , alpha = 1] = parts(color);
    return alpha == 0 && it.parentElement ? ground(it.parentElement) : color;
  };
  let worst = [99, ''];
  for (const it of document.body.querySelectorAll('*')) {
    const text = [...it.childNodes].filter(it => it.nodeType == 3).map(it => it.data.trim()).join('');
    if (!text && !it.value) continue;
    const [a, b] = [light(getComputedStyle(it).color), light(ground(it))];
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < worst[0]) worst = [ratio, text || it.value];
  }
  return worst;
})()";

/// Elements that are wider than the page.
const TOO_WIDE: &str = r"(() => {
  const width = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth <= width) return [];
  return [...document.body.querySelectorAll('*')]
    .filter(it => it.getBoundingClientRect().right > width + 1)
    .map(it => it.outerHTML.slice(0, 80));
})()";

/// An answer by HTTP.
#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: String,
}

/// Sends a request with curl's arguments.
fn ask(from: &Netns, url: &str, arguments: &[&str]) -> Result<Answer> {
    let limit = ["-s", "-i", "--globoff", "--max-time", LIMIT];
    let curl = [&["curl"][..], &limit, arguments, &[url]].concat();
    let answer = from.run(&curl)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no header")?;
    let status = head.split(' ').nth(1).context("no status")?;
    Ok(Answer {
        status: status.parse()?,
        head: head.to_ascii_lowercase(),
        body: body.to_owned(),
    })
}

fn get(world: &World, path: &str) -> Result<Answer> {
    ask(&world.bed.node, &format!("http://{AT}{path}"), &[])
}

/// Returns what tidy says against a page.
fn tidy(markup: &str) -> Result<String> {
    let file = tempfile::NamedTempFile::new()?;
    fs::write(file.path(), markup)?;
    let mut tidy = Command::new("tidy");
    tidy.args(["-errors", "-quiet", "--show-info", "no"]);
    let told = tidy.arg(file.path()).output()?;
    Ok(String::from_utf8_lossy(&told.stderr).into_owned())
}

#[test]
fn a_browser_shows_the_page_in_every_size_and_asks_for_nothing_else() -> Result<()> {
    let world = World::with(POLICY, &LISTEN)?;
    let _echo = Echo::start(&world.far)?;
    let to = *echoes(&world.far).first().context("no echo")?;
    let mut tcp = Tcp::connect(world.pod(0), from_port(40_001, to), to)?;
    tcp.ask()?;
    let page = wait_some(SOON, "two samples and the mapping", || {
        let page = get(&world, "/").ok()?;
        let is_there = page.body.contains("<svg role=\"img\"") && page.body.contains("1 of 61,744");
        is_there.then_some(page)
    })?;
    ensure!(page.status == 200 && page.body.len() <= 200_000);
    ensure!(
        page.head.contains("x-content-type-options: nosniff"),
        "{}",
        page.head
    );
    ensure!(page.head.contains("default-src 'none'"), "{}", page.head);
    for words in [
        "is ready",
        "in force on eth0",
        "10.1.0.10",
        "Masqueraded",
        "attached to eth0",
        "has started, in mode ebpf",
        "generation 1, ",
        "It is not running now.",
        &to.to_string(),
    ] {
        ensure!(page.body.contains(words), "{words}: {}", page.body);
    }

    let mut browser = Browser::start(&world.bed.node)?;
    let url = format!("http://{AT}/");
    for (width, dark) in [(1280, false), (1280, true), (400, false), (400, true)] {
        browser.open(&url, Viewport { width, dark })?;
        assert_eq!(browser.requested(), [url.as_str()], "{width} {dark}");
        let wide = browser.evaluate(TOO_WIDE)?;
        assert_eq!(wide, json!([]), "{width}");
        let contrast = browser.evaluate(CONTRAST)?;
        ensure!(
            contrast[0].as_f64() >= Some(4.5),
            "{width} {dark}: {contrast}"
        );
        // The content security policy admits the style.
        let width_of_body = browser.evaluate("getComputedStyle(document.body).maxWidth")?;
        assert_eq!(width_of_body, "1216px");
        let picture = browser.picture(2_000)?;
        ensure!(
            picture.starts_with(b"\x89PNG") && picture.len() > 20_000,
            "{width}"
        );
        assert_eq!(browser.complaints(), [""; 0]);
    }

    // Explain, by the form.
    browser.evaluate("document.querySelector('#to').value = '10.2.0.1:80'")?;
    browser.evaluate("document.querySelector('#from').value = '172.16.0.2'")?;
    browser.evaluate("void document.querySelector('form button').click()")?;
    browser.wait_loaded()?;
    let text = browser.evaluate("document.body.innerText")?.to_string();
    for words in ["10.2.0.1:80 sees 10.1.0.10", "eth0", "policy"] {
        ensure!(text.contains(words), "{words}: {text}");
    }
    assert_eq!(browser.evaluate(TOO_WIDE)?, json!([]));
    assert_eq!(browser.complaints(), [""; 0]);
    Ok(())
}

#[test]
fn names_that_others_chose_are_text_and_the_markup_is_valid() -> Result<()> {
    const HOSTILE: &str = "<script>alert(1)</script>\"'&.yaml";
    let bed = Bed::dual_stack()?;
    let _far = bed.server(0, &["10.2.0.1/24"])?;
    let dir = tempfile::tempdir()?;
    // A slash is no character of a file's name.
    let name = HOSTILE.replace('/', "\u{2215}");
    fs::write(
        dir.path().join(&name),
        format!("{POLICY_V4}- 10.9.0.0/16\nwrong<b>Key: 1\n"),
    )?;
    let agent = AgentOptions::new(NETDP)
        .config(dir.path())
        .arg("--http-listen=127.0.0.1:10268");
    let agent = Agent::start(&bed.node, agent)?;
    let url = |path: &str| format!("http://{AT}{path}");
    // Names of pods are names that Kubernetes accepts, or they are not taken over.
    let page = wait_some(SOON, "the policy on the page", || {
        let page = ask(&bed.node, &url("/"), &[]).ok()?;
        page.body.contains("10.9.0.0/16").then_some(page)
    })
    .with_context(|| agent.log())?;
    let asked = "/explain?from=shop/%3Cscript%3Ealert(2)%3C/script%3E&to=10.2.0.1";
    let answer = ask(&bed.node, &url(asked), &[])?;
    let wrong = ask(
        &bed.node,
        &url("/explain?to=%3Cscript%3Ealert(3)%3C/script%3E"),
        &[],
    )?;
    let unknown = ask(&bed.node, &url("/?%3Cscript%3E=1"), &[])?;
    assert_eq!((page.status, wrong.status, unknown.status), (200, 400, 400));
    for answer in [&page, &answer, &wrong, &unknown] {
        ensure!(answer.body.contains("&lt;script&gt;"), "{}", answer.body);
        ensure!(!answer.body.contains("<script"), "{}", answer.body);
        let told = tidy(&answer.body)?;
        ensure!(told.is_empty(), "{told}\n{}", answer.body);
    }
    ensure!(page.body.contains("wrong&lt;b&gt;Key"), "{}", page.body);

    let mut browser = Browser::start(&bed.node)?;
    let viewport = Viewport {
        width: 1280,
        dark: false,
    };
    for (path, complaints) in [("/", 0), (asked, 1)] {
        browser.open(&url(path), viewport)?;
        assert_eq!(browser.evaluate("document.scripts.length")?, 0, "{path}");
        // Of the browser itself, about the status 400.
        let told = browser.complaints();
        assert_eq!(told.len(), complaints, "{path}: {told:?}");
    }
    Ok(())
}

#[test]
fn the_page_is_for_this_machine_unless_any_may_read_it() -> Result<()> {
    let mut world = World::with(POLICY, &["--enable-ipv6", "--http-listen=0.0.0.0:10268"])?;
    let node = world.bed.node.clone();
    let from_pod = "http://10.1.0.10:10268";
    for path in ["/", "/explain?to=10.2.0.1", "/api/v1/status"] {
        assert_eq!(get(&world, path)?.status, 200, "{path}");
        let refused = ask(world.pod(0), &format!("{from_pod}{path}"), &[])?;
        assert_eq!(refused.status, 403, "{path}: {refused:?}");
        ensure!(refused.body.contains("--http-page any"), "{refused:?}");
        for (arguments, status) in [
            (&["-H", "Host: rebound.example"][..], 421),
            (&["-H", "Host: localhost"], 200),
            (&["-H", "Host;"], 421),
            (&["-X", "POST", "-d", "x=1"], 405),
            (&["-X", "DELETE"], 405),
        ] {
            let answer = ask(&node, &format!("http://{AT}{path}"), arguments)?;
            assert_eq!(answer.status, status, "{path} {arguments:?}");
        }
        let head = output(
            node.command("curl")
                .args(["-sI", &format!("http://{AT}{path}")]),
        )?;
        ensure!(
            head.starts_with("HTTP/1.1 200") && !head.contains("<html"),
            "{head}"
        );
    }
    // The kubelet asks from wherever it likes.
    assert_eq!(
        ask(world.pod(0), &format!("{from_pod}/livez"), &[])?.status,
        200
    );
    // Metrics are for those who name the machine, or an address; whoever probes names what it likes.
    for (path, host, status) in [
        ("/metrics", "localhost", 200),
        ("/metrics", "10.1.0.10:10268", 200),
        ("/metrics", "rebound.example", 421),
        ("/livez", "rebound.example", 200),
        ("/readyz", "rebound.example", 200),
    ] {
        let host_is = format!("Host: {host}");
        let answer = ask(
            world.pod(0),
            &format!("{from_pod}{path}"),
            &["-H", &host_is],
        )?;
        assert_eq!(answer.status, status, "{path} {host}");
    }
    let refresh = get(&world, "/?every=5")?;
    ensure!(refresh.head.contains("\r\nrefresh: 5"), "{}", refresh.head);
    assert_eq!(get(&world, "/?every=0")?.status, 400);
    let named = get(&world, "/explain?to=rebound.example")?;
    ensure!(
        named.status == 400 && named.body.contains("give an address"),
        "{named:?}"
    );

    world.agent.stop()?;
    *world.agent.options() = options(
        &world.config,
        &["--http-listen=0.0.0.0:10268", "--http-page=any"],
    );
    world.agent.restart()?;
    assert_eq!(ask(world.pod(0), &format!("{from_pod}/"), &[])?.status, 200);
    let rebound = ["-H", "Host: rebound.example"];
    assert_eq!(
        ask(world.pod(0), &format!("{from_pod}/"), &rebound)?.status,
        421
    );

    world.agent.stop()?;
    *world.agent.options() = options(
        &world.config,
        &["--http-listen=127.0.0.1:10268", "--http-page=off"],
    );
    world.agent.restart()?;
    assert_eq!(get(&world, "/")?.status, 404);
    assert_eq!(get(&world, "/api/v1/status")?.status, 404);
    assert_eq!(get(&world, "/livez")?.status, 200);
    Ok(())
}

#[test]
fn the_api_gives_what_the_commands_print() -> Result<()> {
    let world = World::with(POLICY, &LISTEN)?;
    let _echo = Echo::start(&world.far)?;
    let to = *echoes(&world.far).first().context("no echo")?;
    let mut tcp = Tcp::connect(world.pod(0), from_port(40_001, to), to)?;
    tcp.ask()?;
    let answered = |path: &str| -> Result<Value> {
        let answer = get(&world, path)?;
        ensure!(answer.status == 200, "{path}: {answer:?}");
        ensure!(
            answer.head.contains("content-type: application/json"),
            "{answer:?}"
        );
        Ok(serde_json::from_str(&answer.body)?)
    };
    for (path, command) in [
        ("/api/v1/history", "history"),
        ("/api/v1/history?generation=1", "history 1"),
        ("/api/v1/history?generation=1&to=1", "history 1 1"),
        ("/api/v1/policy", "policy"),
        ("/api/v1/policy?for=10.2.0.1", "policy --for 10.2.0.1"),
        ("/api/v1/policy?unused", "policy --unused"),
        ("/api/v1/status", "status"),
        ("/api/v1/suggest", "suggest"),
        ("/api/v1/summary", "flows --summary"),
        (
            "/api/v1/summary?by=destination&n=1",
            "flows --summary=destination -n 1",
        ),
        ("/api/v1/explain?to=10.2.0.1:80", "explain 10.2.0.1:80"),
        (
            "/api/v1/explain?from=172.16.0.2&to=10.2.0.1:53&protocol=udp",
            "explain --from 172.16.0.2 10.2.0.1:53 -p udp",
        ),
    ] {
        let mut words: Vec<_> = command.split(' ').collect();
        words.extend(["-o", "json"]);
        // The background traffic of IPv6 (neighbour discovery) counts meanwhile.
        let mut both = (Value::Null, Value::Null);
        wait_for(SOON, &format!("{path} to be as `{command}`"), || {
            let printed = world.agent.command(&words).output();
            let printed = printed.map(|it| serde_json::from_slice(&it.stdout));
            if let (Ok(Ok(mut printed)), Ok(mut answered)) = (printed, answered(path)) {
                for one in [&mut printed, &mut answered] {
                    if let Some(took) = one.get_mut("read_milliseconds") {
                        *took = Value::Null;
                    }
                }
                both = (printed, answered);
            }
            both.0 == both.1 && !both.0.is_null()
        })
        .with_context(|| format!("{both:#?}"))?;
    }
    // A command without a state directory.
    let codes = output(Command::new(NETDP).args(["codes", "NDP401", "-o", "json"]))?;
    let codes: Value = serde_json::from_str(&codes)?;
    assert_eq!(answered("/api/v1/codes?code=NDP401")?, codes);
    let index = answered("/api/v1")?;
    let paths = index["paths"].as_array().context("no paths")?;
    for entry in paths {
        let path = entry["path"].as_str().context("no path")?;
        let status = get(&world, path)?.status;
        assert_eq!(
            status,
            if path.ends_with("explain") { 400 } else { 200 },
            "{path}"
        );
    }
    for (wrong, words) in [
        ("/api/v1/policy?foor=1", "no parameter"),
        ("/api/v1/events?n=1", "there are none"),
        ("/api/v1/policy?for=x", "for=x"),
        ("/api/v1/summary?by=colour", "by=colour"),
        ("/api/v1/explain?to=10.2.0.1:99999", "65535"),
        ("/api/v1/history?to=1", "generation"),
    ] {
        let answer = get(&world, wrong)?;
        let told: Value = serde_json::from_str(&answer.body)?;
        assert_eq!(
            (answer.status, &told["schema"]),
            (400, &json!(1)),
            "{wrong}"
        );
        ensure!(told["error"].to_string().contains(words), "{wrong}: {told}");
    }
    Ok(())
}

#[test]
fn probes_are_answered_while_a_page_takes_too_long() -> Result<()> {
    let bed = Bed::dual_stack()?;
    let config = ConfigVolume::new(POLICY_V4)?;
    // An explanation reads the rules of netfilter, here by a program that waits for a file to go.
    let tools = tempfile::tempdir_in("/run")?;
    fs::set_permissions(tools.path(), fs::Permissions::from_mode(0o755))?;
    let [block, asked, nft] = ["block", "asked", "nft"].map(|name| tools.path().join(name));
    let script = format!(
        "#!/bin/sh\nwhile [ -e {} ]; do touch {}; sleep 0.1; done\nexec /usr/sbin/nft \"$@\"\n",
        block.display(),
        asked.display()
    );
    fs::write(&nft, script)?;
    fs::set_permissions(&nft, fs::Permissions::from_mode(0o755))?;
    let arguments = [
        "--http-listen=127.0.0.1:10268",
        "--tool-dir",
        path(tools.path())?,
    ];
    let _agent = start_agent(&bed.node, &config, &arguments)?;
    let url = |path: &str| format!("http://{AT}{path}");
    let explain = url("/explain?to=10.2.0.1");
    assert_eq!(ask(&bed.node, &explain, &[])?.status, 200);
    wait_for(SOON, "the node to be ready", || {
        ask(&bed.node, &url("/readyz"), &[]).is_ok_and(|it| it.status == 200)
    })?;

    fs::write(&block, "")?;
    let curl = |url: &str| -> Result<Running> {
        let format = "%{http_code}";
        bed.node.spawn(&[
            "curl",
            "-s",
            "-o",
            "/dev/null",
            "-w",
            format,
            "--max-time",
            LIMIT,
            url,
        ])
    };
    let slow = curl(&explain)?;
    wait_for(SOON, "the program to be asked", || asked.exists())?;
    let waiting = [slow, curl(&url("/"))?, curl(&url("/api/v1/status"))?];
    for _ in 0..20 {
        assert_eq!(ask(&bed.node, &url("/livez"), &[])?.status, 200);
        assert_eq!(ask(&bed.node, &url("/readyz"), &[])?.status, 200);
    }
    for one in waiting {
        assert_eq!(one.finish(SOON)?, "503");
    }
    fs::remove_file(&block)?;
    wait_for(SOON, "an answer again", || {
        ask(&bed.node, &explain, &[]).is_ok_and(|it| it.status == 200)
    })
}

fn path(path: &std::path::Path) -> Result<&str> {
    path.to_str().context("a path that is no text")
}
