//! The binary `dozo`: allocator, runtime, exit status.

use std::process::ExitCode;

use clap::Parser;
use ops::cli::Cli;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> ExitCode {
    Cli::parse().run().await
}
