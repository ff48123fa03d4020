//! Which crate may depend on which. Servers never import each other: they talk HTTP through the common crate's
//! clients, also when they run in one process.

use std::collections::BTreeMap;
use std::process::Command;

/// Each crate with the workspace crates that it may use, and those that only its tests may use.
const ALLOWED: &[(&str, &[&str], &[&str])] = &[
    ("common", &[], &[]),
    ("storage-node", &["common"], &[]),
    ("gateway", &["common"], &[]),
    ("database", &["common"], &[]),
    ("search", &["common", "database"], &[]),
    ("origin", &["common"], &["search"]),
    ("billing", &["common", "database"], &[]),
    ("mobile-access", &["common"], &[]),
    ("ops", &["common", "storage-node", "gateway", "search", "origin", "billing", "mobile-access"], &[]),
    ("bench", &["common", "ops", "storage-node", "billing", "database"], &[]),
];

#[test]
fn crates_use_each_other_only_along_the_allowed_edges() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let allowed: BTreeMap<&str, (&[&str], &[&str])> =
        ALLOWED.iter().map(|(name, uses, tests_use)| (*name, (*uses, *tests_use))).collect();
    assert_eq!(packages.len(), allowed.len(), "a crate is missing in this table, or in the workspace");
    for package in packages {
        let name = package["name"].as_str().unwrap();
        let (uses, tests_use) = allowed.get(name).unwrap_or_else(|| panic!("{name} is not in this table"));
        for dependency in package["dependencies"].as_array().unwrap() {
            let used = dependency["name"].as_str().unwrap();
            if dependency["path"].is_null() {
                continue;
            }
            let for_tests = dependency["kind"] == "dev" && tests_use.contains(&used);
            assert!(uses.contains(&used) || for_tests, "{name} must not depend on {used}");
        }
    }
}
