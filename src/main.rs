use std::process::ExitCode;

fn main() -> ExitCode {
    autoglmd::cli::main()
}
