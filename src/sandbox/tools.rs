//! Where interpreters and compilers are installed.
//!
//! Most lie below `/usr`, which every program in the sandbox sees. Version managers put them into
//! the home folder, with a script or a launcher on the PATH that finds the real one by files and
//! variables that the sandbox does not have. So this module asks the tool itself, outside the
//! sandbox, for the folder of its installation, and shows only that folder.
//!
//! Invariant: a folder that holds more than one installation is never shown: not `/`, not a home
//! folder or a folder above it, not `~/.local`.

use std::env;
use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// Folders that are shown whole, or are links into `/usr`.
pub(super) const SYSTEM_FOLDERS: &[&str] = &[
    "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32",
];

/// Where the system's programs are searched.
const SYSTEM_PATH: &[&str] = &["/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin"];

/// Commands that print the folder in which a tool is installed, with the tool in its `bin`.
const QUESTIONS: &[(&str, &[&str])] = &[
    ("python3", &["-c", "import sys; print(sys.base_prefix)"]),
    (
        "node",
        &["-p", "path.dirname(path.dirname(process.execPath))"],
    ),
    ("rustc", &["--print", "sysroot"]),
    ("go", &["env", "GOROOT"]),
    ("ruby", &["-e", "puts RbConfig::CONFIG['prefix']"]),
    ("perl", &["-MConfig", "-e", "print $Config{prefix}"]),
    ("php", &["-r", "echo dirname(PHP_BINARY, 2);"]),
];

/// The machine's tools outside the system folders.
#[derive(Debug, Default)]
pub(super) struct Tools {
    /// Installations to show.
    pub installations: Vec<PathBuf>,
}

impl Tools {
    /// Asks once: a tool that is installed later is found after a restart.
    pub fn of_machine() -> &'static Tools {
        static TOOLS: OnceLock<Tools> = OnceLock::new();
        TOOLS.get_or_init(|| {
            let path = env::var_os("PATH").unwrap_or_default();
            let mut tools = Tools::default();
            for (name, question) in QUESTIONS {
                if let Some(found) = find(name, &path)
                    && !is_of_system(&found)
                    && let Some(installation) = ask(&found, question)
                    && !is_of_system(&installation)
                    && !is_private(&installation)
                    && !tools.installations.contains(&installation)
                {
                    tools.installations.push(installation);
                }
            }
            tools
        })
    }

    /// Yields the folders of programs inside the sandbox, in the order in which they are searched.
    pub fn search_path(&self) -> impl Iterator<Item = PathBuf> {
        let installed = self.installations.iter().map(|folder| folder.join("bin"));
        installed.chain(SYSTEM_PATH.iter().map(PathBuf::from))
    }

    /// Returns the path of a program inside the sandbox.
    pub fn locate(&self, name: &str) -> Option<PathBuf> {
        let candidates = self.search_path().map(|folder| folder.join(name));
        candidates.into_iter().find(|path| is_executable(path))
    }
}

/// Returns the first program of this name on a PATH.
fn find(name: &str, path: &OsStr) -> Option<PathBuf> {
    let candidates = env::split_paths(path).map(|folder| folder.join(name));
    candidates.into_iter().find(|path| is_executable(path))
}

fn is_executable(path: &Path) -> bool {
    let metadata = path.metadata();
    metadata.is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// Returns whether the sandbox shows this path anyway.
fn is_of_system(path: &Path) -> bool {
    let real = path.canonicalize();
    let real = real.as_deref().unwrap_or(path);
    SYSTEM_FOLDERS.iter().any(|folder| real.starts_with(folder))
}

/// Runs a tool outside the sandbox. That is safe: the user installed it, and its arguments are
/// ours.
fn ask(tool: &Path, question: &[&str]) -> Option<PathBuf> {
    let output = Command::new(tool)
        .args(question)
        .current_dir("/")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let folder = Path::new(text.trim()).canonicalize().ok()?;
    (output.status.success() && folder.join("bin").is_dir()).then_some(folder)
}

/// Returns whether showing this folder would show more than an installation.
fn is_private(folder: &Path) -> bool {
    let home = env::var_os("HOME").map(PathBuf::from);
    let homes = home
        .into_iter()
        .chain([PathBuf::from("/root"), PathBuf::from("/home")]);
    let mut homes = homes.map(|home| home.canonicalize().unwrap_or(home));
    let is_home_of_other = folder.parent() == Some(Path::new("/home"));
    let is_shared = folder.ends_with(".local") || folder.ends_with(".config");
    is_home_of_other || is_shared || homes.any(|home| home.starts_with(folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_with_more_than_an_installation_are_private() {
        for private in ["/", "/root", "/home", "/home/ada", "/home/ada/.local"] {
            assert!(is_private(Path::new(private)), "{private}");
        }
        for shown in [
            "/root/.pyenv/versions/3.12.1",
            "/opt/node",
            "/home/ada/.rustup/toolchains/x",
        ] {
            assert!(!is_private(Path::new(shown)), "{shown}");
        }
    }

    #[test]
    fn programs_are_found_on_a_path_and_only_executable_ones() {
        assert_eq!(
            find("sh", OsStr::new("/nowhere:/bin")),
            Some(PathBuf::from("/bin/sh"))
        );
        assert_eq!(find("passwd", OsStr::new("/etc")), None);
        assert!(is_of_system(Path::new("/bin/sh")));
    }
}
