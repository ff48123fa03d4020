//! `bench agent`: sends load for a `bench run` on another machine.

use std::path::PathBuf;

use bench::agents::agent;
use bench::agents::link::AgentToken;

#[derive(clap::Args)]
pub struct AgentArgs {
    /// Where to wait for orders.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:7461")]
    listen: String,
    /// File with a token that who gives orders has to have too.
    #[arg(long, value_name = "FILE")]
    agent_token_file: PathBuf,
}

pub async fn run(args: AgentArgs) -> Result<bool, Box<dyn std::error::Error>> {
    let token = AgentToken::read(&args.agent_token_file)?;
    agent::serve(&args.listen, token, |what| eprintln!("bench: {what}")).await?;
    Ok(true)
}
