//! Pages generated from the definition of the command line: shell completions and manual pages.

use std::path::Path;

use clap::Command;

use crate::console::exit::{self, Code};
use crate::console::{fail, put};

pub const COMPLETION_EXAMPLES: &str = "\
Examples:
  autoglmd completions bash > ~/.local/share/bash-completion/completions/autoglmd
  autoglmd completions zsh > \"${fpath[1]}/_autoglmd\"
  autoglmd completions fish > ~/.config/fish/completions/autoglmd.fish";

pub const MAN_EXAMPLES: &str = "\
Examples:
  autoglmd man | man -l -
  autoglmd man --folder ~/.local/share/man/man1";

pub fn completions(mut command: Command, shell: clap_complete::Shell) -> Result<(), Code> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, "autoglmd", &mut script);
    put_bytes(script)
}

pub fn man(command: Command, folder: Option<&Path>) -> Result<(), Code> {
    if let Some(folder) = folder {
        let written = clap_mangen::generate_to(command, folder);
        return written.map_err(|error| {
            fail(
                exit::of_file(&error),
                format_args!("{}: {error}", folder.display()),
            )
        });
    }
    let mut page = Vec::new();
    let rendered = clap_mangen::Man::new(command).render(&mut page);
    rendered.map_err(|error| fail(exit::SOFTWARE, error))?;
    put_bytes(page)
}

fn put_bytes(bytes: Vec<u8>) -> Result<(), Code> {
    let text = String::from_utf8(bytes);
    let text = text.map_err(|error| fail(exit::SOFTWARE, error))?;
    put(&text)
}
