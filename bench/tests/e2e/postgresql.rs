//! Search and billing in databases that `ops/postgresql/setup.sql` has made: who may do what there, that servers run on
//! them, and that a dump can be put back.

use std::path::Path;
use std::process::{Command, Output};

use database::testing::Postgres;

use crate::cluster::{SECRET, SOON, eventually};
use crate::process::dozo;

const SERVERS: [&str; 3] = ["search", "service-billing", "content-billing"];

#[track_caller]
fn succeeds(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What `role` gets for a statement in a database.
fn query(server: &Postgres, role: &str, database: &str, sql: &str) -> Output {
    server.command("psql").args(["-U", role, "-d", database, "-Atqc", sql]).output().unwrap()
}

#[test]
fn servers_run_on_what_setup_made_and_a_dump_is_put_back() {
    let Some(server) = Postgres::start("-c fsync=off") else { return };
    let setup = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ops/postgresql/setup.sql");
    let mut psql = server.command("psql");
    psql.args(["-d", "postgres", "-f"]).arg(setup);
    for role in ["SEARCH", "SERVICE_BILLING", "CONTENT_BILLING", "BACKUP"] {
        psql.env(format!("DOZO_{role}_PASSWORD"), format!("it's the password of {role}"));
    }
    succeeds(&psql.output().unwrap());

    // Each role is at home in its own database, and nowhere else.
    for of in SERVERS {
        let role = format!("dozo-{of}");
        let rights =
            "SELECT rolsuper OR rolcreatedb OR rolcreaterole FROM pg_roles WHERE rolname = current_user";
        assert_eq!(succeeds(&query(&server, &role, &role, rights)), "f\n");
        for other in SERVERS.into_iter().filter(|other| *other != of) {
            assert!(!query(&server, &role, &format!("dozo-{other}"), "SELECT 1").status.success());
        }
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("password"), "any will do: this server trusts its socket\n").unwrap();
    let start =
        |command: &str, database: &str, role: &str| {
            let url = format!("postgres://{role}@localhost/{database}?host={}", server.folder().display());
            let mut process = Command::new(dozo());
            process.args([
                command,
                "--listen",
                "127.0.0.1:0",
                "--database",
                &url,
                "--database-password-file",
                "password",
            ]);
            if command != "search" {
                process.args(["--name", command, "--search", "http://127.0.0.1:1"]);
            }
            let log = std::fs::File::create(folder.path().join("log")).unwrap();
            let process = process.current_dir(folder.path()).env("DOZO__CLUSTER__SECRET", SECRET);
            let mut process = process.stderr(log).spawn().unwrap();
            let said = || std::fs::read_to_string(folder.path().join("log")).unwrap();
            eventually("the server starts", SOON, || {
                if said().contains("started") { Ok(()) } else { Err(said()) }
            });
            let stopped = Command::new("kill").args(["-TERM", &process.id().to_string()]).status().unwrap();
            assert!(stopped.success() && process.wait().unwrap().success(), "{}", said());
        };
    for of in SERVERS {
        start(of, &format!("dozo-{of}"), &format!("dozo-{of}"));
    }

    // As backup.md says.
    let dump = folder.path().join("books.dump");
    let mut pg_dump = server.command("pg_dump");
    pg_dump.args(["-U", "dozo-backup", "--format=custom", "dozo-service-billing", "--file"]).arg(&dump);
    succeeds(&pg_dump.output().unwrap());
    assert!(!query(&server, "dozo-backup", "dozo-search", "DELETE FROM clients").status.success());
    succeeds(&server.command("createdb").args(["-O", "dozo-service-billing", "restored"]).output().unwrap());
    let mut pg_restore = server.command("pg_restore");
    pg_restore
        .args(["--no-owner", "--role=dozo-service-billing", "--exit-on-error", "-d", "restored"])
        .arg(&dump);
    succeeds(&pg_restore.output().unwrap());
    start("service-billing", "restored", "dozo-service-billing");
}
