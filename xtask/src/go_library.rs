//! Kustomize and Helm themselves, as the shared libraries in their Python packages; Debian 12 has
//! no packages of the programs.
//!
//! Each runs in a process of its own: a program can safely contain only one Go runtime.

use crate::go_libraries::{HELM, KUSTOMIZE};
use anyhow::{Context as _, Result, bail};
use clap::Args;
use libloading::{Library, Symbol};
use std::ffi::{CStr, CString, c_char, c_int, c_ulonglong};
use std::path::{Path, PathBuf};

/// Does not wait for pods, as without `--wait`; all other checks are Helm's.
const OPTIONS: &str = r#"{"wait": false, "timeout_seconds": 30, "server_side_apply": "false"}"#;

/// Timeout of the options, in seconds.
const TIMEOUT: c_int = 30;

/// An installation: the chart, its release and its target.
#[derive(Debug, Args)]
pub struct Helm {
    /// The cluster; packaging needs none.
    #[arg(long, required_unless_present = "package")]
    kubeconfig: Option<PathBuf>,
    /// The release's namespace.
    #[arg(long, default_value = "kube-system")]
    namespace: String,
    /// The values, as JSON.
    #[arg(long, default_value = "{}")]
    values: String,
    /// Only lint the chart.
    #[arg(long)]
    lint: bool,
    /// Upgrade the existing release.
    #[arg(long, conflicts_with = "lint")]
    upgrade: bool,
    /// Uninstall the existing release.
    #[arg(long, conflicts_with_all = ["lint", "upgrade"])]
    uninstall: bool,
    /// Package the chart into an archive in this directory.
    #[arg(long, value_name = "DIRECTORY", conflicts_with_all = ["lint", "upgrade", "uninstall"])]
    package: Option<PathBuf>,
    /// The chart's directory.
    chart: PathBuf,
}

/// Prints the output of `kustomize build` for a directory as a JSON list.
pub fn kustomize(directory: &Path) -> Result<()> {
    let library = load(KUSTOMIZE.path()?)?;
    let (directory, options) = (text(&directory.to_string_lossy())?, text("{}")?);
    let mut result = std::ptr::null_mut();
    // SAFETY: the signature is that of the package's header; the strings outlive the call.
    let code = unsafe {
        type Build = unsafe extern "C" fn(*const c_char, *const c_char, *mut *mut c_char) -> c_int;
        let build: Symbol<'_, Build> = library.get(b"pykustomize_build_to_json")?;
        build(directory.as_ptr(), options.as_ptr(), &raw mut result)
    };
    print(&library, code, result, b"pykustomize_last_error")
}

/// Installs, upgrades, lints or removes a chart's release and prints Helm's result as JSON; or
/// packages the chart and prints the path of the archive.
pub fn helm(helm: &Helm) -> Result<()> {
    type Create = unsafe extern "C" fn(
        *const c_char,
        *const c_char,
        *const c_char,
        *const c_char,
        *mut c_ulonglong,
    ) -> c_int;
    type Install = unsafe extern "C" fn(
        c_ulonglong,
        *const c_char,
        *const c_char,
        *const c_char,
        *const c_char,
        *const c_char,
        *mut *mut c_char,
    ) -> c_int;
    type Lint = unsafe extern "C" fn(c_ulonglong, *const c_char, *mut *mut c_char) -> c_int;
    type Package =
        unsafe extern "C" fn(c_ulonglong, *const c_char, *const c_char, *mut *mut c_char) -> c_int;
    type Uninstall =
        unsafe extern "C" fn(c_ulonglong, *const c_char, c_int, c_int, *mut *mut c_char) -> c_int;

    let library = load(HELM.path()?)?;
    let namespace = text(&helm.namespace)?;
    let path_text =
        |path: &Option<PathBuf>| text(&path.as_deref().unwrap_or(Path::new("")).to_string_lossy());
    let (kubeconfig, archives) = (path_text(&helm.kubeconfig)?, path_text(&helm.package)?);
    let chart = text(&helm.chart.to_string_lossy())?;
    let values = text(&helm.values)?;
    let (name, none, options) = (text("netdp")?, text("")?, text(OPTIONS)?);
    let (mut handle, mut result) = (0, std::ptr::null_mut());
    // SAFETY: the signatures are those of the package's header; the strings outlive the calls, and
    // the handle was returned by the first call.
    let code = unsafe {
        let create: Symbol<'_, Create> = library.get(b"helm_sdkpy_config_create")?;
        let code = create(
            namespace.as_ptr(),
            kubeconfig.as_ptr(),
            none.as_ptr(),
            options.as_ptr(),
            &raw mut handle,
        );
        if code != 0 {
            code
        } else if helm.lint {
            let lint: Symbol<'_, Lint> = library.get(b"helm_sdkpy_lint")?;
            lint(handle, chart.as_ptr(), &raw mut result)
        } else if helm.package.is_some() {
            let package: Symbol<'_, Package> = library.get(b"helm_sdkpy_package")?;
            package(handle, chart.as_ptr(), archives.as_ptr(), &raw mut result)
        } else if helm.uninstall {
            let uninstall: Symbol<'_, Uninstall> = library.get(b"helm_sdkpy_uninstall")?;
            uninstall(handle, name.as_ptr(), 0, TIMEOUT, &raw mut result)
        } else {
            // Both functions take the same arguments.
            let action: &[u8] = if helm.upgrade {
                b"helm_sdkpy_upgrade"
            } else {
                b"helm_sdkpy_install"
            };
            let install: Symbol<'_, Install> = library.get(action)?;
            install(
                handle,
                name.as_ptr(),
                chart.as_ptr(),
                values.as_ptr(),
                none.as_ptr(),
                options.as_ptr(),
                &raw mut result,
            )
        }
    };
    print(&library, code, result, b"helm_sdkpy_last_error")
}

fn load(path: PathBuf) -> Result<Library> {
    // SAFETY: the initialisers of a Go library start its runtime; this process has no other Go
    // runtime.
    unsafe { Library::new(&path) }.with_context(|| format!("loading {}", path.display()))
}

fn text(text: &str) -> Result<CString> {
    CString::new(text).with_context(|| format!("{text:?} has a zero byte"))
}

/// Prints a result, or returns the library's error message as an error.
fn print(library: &Library, code: c_int, result: *const c_char, last_error: &[u8]) -> Result<()> {
    if code == 0 && !result.is_null() {
        // SAFETY: a NUL-terminated string that the library does not free.
        println!("{}", unsafe { CStr::from_ptr(result) }.to_string_lossy());
        return Ok(());
    }
    // SAFETY: the signature is that of the header; the library does not free the string.
    let words = unsafe {
        let last: Symbol<'_, unsafe extern "C" fn() -> *const c_char> = library.get(last_error)?;
        let words = last();
        (!words.is_null()).then(|| CStr::from_ptr(words).to_string_lossy().into_owned())
    };
    bail!(
        "{}",
        words.unwrap_or_else(|| format!("the library returned {code}"))
    )
}
