//! HAProxy on an address of its own, in front of the daemon's.
//!
//! Owns the process. Must never use a fixed port.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};

pub struct HaProxy {
    process: Child,
    pub address: SocketAddr,
}

impl HaProxy {
    /// `lines` are those of the backend; `DAEMON` in them is replaced by the daemon's address.
    pub fn start(folder: &Path, mode: &str, daemon: SocketAddr, lines: &str) -> HaProxy {
        let lines = lines.replace("DAEMON", &daemon.to_string());
        HaProxy::with_backend(folder, mode, &lines)
    }

    /// Starts one whose backend has these lines.
    pub fn with_backend(folder: &Path, mode: &str, lines: &str) -> HaProxy {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        // The listener is its stdin, so that no port must be guessed.
        let configuration = format!(
            "defaults\n  mode {mode}\n  timeout connect 30s\n  timeout client 30s\n  \
             timeout server 30s\nfrontend front\n  bind fd@0\n  default_backend back\n\
             backend back\n{lines}\n"
        );
        let file = folder.join(format!("haproxy-{}.cfg", address.port()));
        std::fs::write(&file, configuration).expect("the folder can be written");
        // Debian's path, which is not in every PATH.
        let program = ["/usr/sbin/haproxy", "haproxy"];
        let program = program.iter().find(|path| Path::new(path).exists());
        let process = Command::new(program.unwrap_or(&"haproxy"))
            .args(["-db", "-f"])
            .arg(&file)
            .stdin(Stdio::from(OwnedFd::from(listener)))
            .spawn()
            .unwrap_or_else(|error| panic!("haproxy: {error}; apt-get install haproxy"));
        HaProxy { process, address }
    }
}

impl Drop for HaProxy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
