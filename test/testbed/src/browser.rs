//! Chromium without a screen, driven by the DevTools protocol over pipes.

use super::netns::Netns;
use super::process::Running;
use super::workdir::WorkDir;
use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::{Value, json};
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// Timeout for an answer of the browser, and for a page to load.
const PATIENCE: Duration = Duration::from_secs(60);

/// Width and colours with which a page is shown.
#[derive(Debug, Clone, Copy)]
pub struct Viewport {
    /// Width of the window, in CSS pixels.
    pub width: u32,
    /// Set if the reader prefers light on dark.
    pub dark: bool,
}

/// A browser with one tab.
pub struct Browser {
    // Dropped first: without it the pipes would never end.
    running: Running,
    commands: File,
    messages: Receiver<Value>,
    session: String,
    number: u64,
    /// URLs that were requested since the last page was opened.
    requested: Vec<String>,
    /// Complaints of the browser since then: of its log, of the console, of exceptions.
    complaints: Vec<String>,
    _dir: WorkDir,
}

impl Browser {
    /// Starts the browser in a namespace.
    pub fn start(ns: &Netns) -> Result<Self> {
        let dir = WorkDir::new("browser")?;
        let [to, from] = ["to", "from"].map(|name| dir.path().join(name));
        for pipe in [&to, &from] {
            mkfifo(pipe, Mode::S_IRWXU).context("making a pipe to the browser")?;
        }
        // The browser reads commands from descriptor 3 and writes to 4.
        let mut command = ns.command("sh");
        command.args([
            "-c",
            "in=$1 out=$2; shift 2; exec \"$@\" 3<\"$in\" 4>\"$out\"",
            "sh",
        ]);
        command.arg(&to).arg(&from);
        command.args([
            "chromium",
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--hide-scrollbars",
            "--no-first-run",
            "--remote-debugging-pipe",
        ]);
        let profile = dir.path().join("profile");
        command.arg(format!("--user-data-dir={}", profile.display()));
        let running = Running::start(command)?;
        // The shell opens both, in this order, before it becomes the browser.
        let commands = File::options().write(true).open(&to)?;
        let answers = BufReader::new(File::open(&from)?);
        let (send, messages) = channel();
        std::thread::spawn(move || {
            for message in answers.split(0).map_while(Result::ok) {
                let message = serde_json::from_slice(&message);
                if message.is_ok_and(|message| send.send(message).is_err()) {
                    break;
                }
            }
        });
        let mut browser = Self {
            running,
            commands,
            messages,
            session: String::new(),
            number: 0,
            requested: Vec::new(),
            complaints: Vec::new(),
            _dir: dir,
        };
        let tab = browser.ask("Target.createTarget", &json!({"url": "about:blank"}))?;
        let attach = json!({"targetId": tab["targetId"], "flatten": true});
        let session = browser.ask("Target.attachToTarget", &attach)?;
        browser.session = text(&session["sessionId"])?;
        for domain in ["Page", "Network", "Log", "Runtime"] {
            browser.ask(&format!("{domain}.enable"), &json!({}))?;
        }
        Ok(browser)
    }

    /// Opens a page and waits until it is loaded.
    pub fn open(&mut self, url: &str, viewport: Viewport) -> Result<()> {
        let size = json!({
            "width": viewport.width, "height": 900, "deviceScaleFactor": 1, "mobile": false,
        });
        self.ask("Emulation.setDeviceMetricsOverride", &size)?;
        let scheme = if viewport.dark { "dark" } else { "light" };
        let media = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.ask("Emulation.setEmulatedMedia", &media)?;
        self.requested.clear();
        self.complaints.clear();
        let opened = self.ask("Page.navigate", &json!({"url": url}))?;
        if let Some(error) = opened.get("errorText") {
            bail!("opening {url}: {error}");
        }
        self.wait_loaded()
    }

    /// Waits for the event that a page is loaded.
    pub fn wait_loaded(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while self.next(deadline)?["method"] != "Page.loadEventFired" {}
        Ok(())
    }

    /// Evaluates an expression of JavaScript in the page, which the page's own policy does not concern.
    pub fn evaluate(&mut self, expression: &str) -> Result<Value> {
        let ask = json!({"expression": expression, "returnByValue": true});
        let mut answer = self.ask("Runtime.evaluate", &ask)?;
        if let Some(exception) = answer.get("exceptionDetails") {
            bail!("{expression}: {exception}");
        }
        Ok(answer["result"]["value"].take())
    }

    /// Returns a picture of the page, in PNG: its upper part, of at most this height in CSS pixels.
    pub fn picture(&mut self, height: u32) -> Result<Vec<u8>> {
        let size = self.evaluate("[innerWidth, document.documentElement.scrollHeight]")?;
        let width = size[0].as_u64().context("the page has no width")?;
        let whole = size[1].as_u64().context("the page has no height")?;
        let clip = json!({
            "x": 0, "y": 0, "width": width, "height": whole.min(height.into()), "scale": 1,
        });
        let ask = json!({"format": "png", "captureBeyondViewport": true, "clip": clip});
        let answer = self.ask("Page.captureScreenshot", &ask)?;
        Ok(BASE64_STANDARD.decode(text(&answer["data"])?)?)
    }

    /// Returns the URLs that were requested since the last page was opened.
    #[must_use]
    pub fn requested(&self) -> &[String] {
        &self.requested
    }

    /// Returns the browser's complaints since then: violations of policies, errors of the network,
    /// and whatever a script has written.
    #[must_use]
    pub fn complaints(&self) -> &[String] {
        &self.complaints
    }

    /// Sends a command and returns the result.
    fn ask(&mut self, method: &str, parameters: &Value) -> Result<Value> {
        self.number += 1;
        let mut command = json!({"id": self.number, "method": method, "params": parameters});
        if !self.session.is_empty() {
            command["sessionId"] = json!(self.session);
        }
        let sent = self.commands.write_all(format!("{command}\0").as_bytes());
        sent.with_context(|| format!("the browser wrote:{}", self.running.written()))?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut message = self.next(deadline).with_context(|| method.to_owned())?;
            if message["id"] != self.number {
                continue;
            }
            if let Some(error) = message.get("error") {
                bail!("{method}: {error}");
            }
            return Ok(message["result"].take());
        }
    }

    /// Returns the next message, and records what it says about the page.
    fn next(&mut self, deadline: Instant) -> Result<Value> {
        let left = deadline.saturating_duration_since(Instant::now());
        let message = self.messages.recv_timeout(left).map_err(|err| {
            let why = match err {
                RecvTimeoutError::Timeout => "the browser did not answer in time",
                RecvTimeoutError::Disconnected => "the browser ended",
            };
            anyhow::anyhow!("{why}; it wrote:{}", self.running.written())
        })?;
        let parameters = &message["params"];
        match message["method"].as_str() {
            Some("Network.requestWillBeSent") => {
                self.requested.push(text(&parameters["request"]["url"])?);
            }
            Some("Log.entryAdded" | "Runtime.exceptionThrown" | "Runtime.consoleAPICalled") => {
                self.complaints.push(parameters.to_string());
            }
            // It would wait for an answer for ever.
            Some("Page.javascriptDialogOpening") => bail!("a script opened a dialog: {parameters}"),
            _ => {}
        }
        Ok(message)
    }
}

fn text(value: &Value) -> Result<String> {
    let text = value.as_str().map(str::to_owned);
    text.with_context(|| format!("{value} is no text"))
}
