//! What `dozo up` prints when all is ready: addresses, keys, and commands to copy.

use std::time::Duration;

use common::api::mobile_access::REQUEST_PORT;

use super::directory::TRAVELLER;
use super::{Up, UpOptions};
use crate::endpoints::{Endpoints, MobileAccessEndpoint, SiteEndpoints};

/// The whole text.
pub fn ready(up: &Up, options: &UpOptions, took: Duration) -> String {
    let endpoints = &up.endpoints;
    let mut text = format!(
        "Dozo is ready after {:.1} s; its data is in {}\n\n",
        took.as_secs_f64(),
        options.data_dir.display()
    );
    for (name, server) in [
        ("search", &endpoints.search),
        ("origin", &endpoints.origin),
        ("service billing", &endpoints.service_billing),
        ("content billing", &endpoints.content_billing),
    ] {
        text.push_str(&line(name, &server.http, &server.admin));
    }
    let MobileAccessEndpoint { http, admin, .. } = &endpoints.mobile_access;
    text.push_str(&line("mobile access", http, admin));
    for site in &endpoints.sites {
        text.push_str(&format!("  site {}\n", site.name));
        for gateway in &site.gateways {
            text.push_str(&line(&format!("  gateway {}", gateway.name), &gateway.http, &gateway.admin));
        }
        for node in &site.nodes {
            text.push_str(&line(&format!("  node {}", node.name), &node.http, &node.admin));
        }
    }
    text.push_str(&format!("\n  endpoints and keys: {}\n", up.endpoints_file.display()));
    text.push_str(&examples(endpoints, options, up));
    text.push_str("\nCtrl-C stops it.\n");
    text
}

fn line(name: &str, http: &str, admin: &str) -> String {
    format!("  {name:<18} {http}   (admin {admin})\n")
}

/// Commands that work as they are printed.
fn examples(endpoints: &Endpoints, options: &UpOptions, up: &Up) -> String {
    let mut text = format!("\n  export DOZO_ENDPOINTS={}\n", up.endpoints_file.display());
    for client in &endpoints.clients {
        let variable = client.name.as_str().to_uppercase().replace('-', "_");
        text.push_str(&format!("  export TOKEN_{variable}={}   # at {}\n", client.token, client.site));
    }
    if let (true, Some(tokyo)) = (options.demo, endpoints.sites.first().and_then(first_gateway)) {
        let osaka = endpoints.sites.last().and_then(first_gateway).unwrap_or(tokyo);
        text.push_str(&format!(
            "\n  echo 'hello from alice' | curl -H \"Authorization: Bearer $TOKEN_ALICE\" -T - {tokyo}/v1/contents/alice/hello.txt\n  \
             curl -i -H \"Authorization: Bearer $TOKEN_CAROL\" {osaka}/v1/contents/alice/hello.txt\n  \
             curl -H \"Authorization: Bearer $TOKEN_BOB\" -o sakura.wav {tokyo}/v1/contents/studio/sounds/sakura.wav\n  \
             dozo ls studio --as bob\n  \
             dozo get studio/pictures/storehouse.png --as carol\n"
        ));
        text.push_str(&travelling(endpoints, options));
    }
    text.push_str("  dozo status\n");
    text
}

/// The demo's traveller, on its way near the first site.
fn travelling(endpoints: &Endpoints, options: &UpOptions) -> String {
    let folder = options.data_dir.join("cards");
    let (folder, hear) = (folder.display(), &endpoints.mobile_access.hear);
    let elsewhere = if hear.ends_with(&format!(":{REQUEST_PORT}")) {
        String::new()
    } else {
        format!(" --address {hear}")
    };
    format!(
        "  dozo connect --card {folder}/{TRAVELLER}.card{elsewhere}\n  \
         dozo get studio/README.md --visit {folder}/{TRAVELLER}.visit\n"
    )
}

fn first_gateway(site: &SiteEndpoints) -> Option<&str> {
    site.gateways.first().map(|g| g.http.as_str())
}
