//! The API's description: OpenAPI 3.1, made of the table of routes and the types that they take and give.

use axum::Json;
use common::error::ErrorBody;
use utoipa::openapi::path::{Operation, PathItem};
use utoipa::openapi::{Components, Content, InfoBuilder, OpenApi, Ref, RefOr, Response, ResponseBuilder};
use utoipa::{OpenApi as _, ToSchema};

use super::access::security_schemes;
use super::{Described, ROUTES, Route};

/// Name of the answer that every route may give.
const ERROR: &str = "Error";

/// The description of this API
///
/// OpenAPI 3.1. It holds no data, so anybody may read it.
#[utoipa::path(get, path = "/v1/openapi.json", responses((status = 200, body = serde_json::Value)))]
pub(super) async fn openapi() -> Json<OpenApi> {
    Json(description())
}

/// What both billing servers' API is, as OpenAPI 3.1.
pub fn description() -> OpenApi {
    let mut api = Described::openapi();
    api.info = InfoBuilder::new()
        .title("Dozo billing")
        .description(Some(
            "Service billing and content billing speak alike. Amounts are whole minor units of their currency \
             (`…_minor`) or millionths of one (`…_micros`); times are milliseconds since 1970; months are counted in \
             the tariff's zone.",
        ))
        .version(env!("CARGO_PKG_VERSION"))
        .build();
    let components = api.components.get_or_insert_with(Components::new);
    components.responses.insert(ERROR.to_owned(), error().into());
    for (name, scheme) in security_schemes() {
        components.add_security_scheme(name, scheme);
    }
    for route in ROUTES {
        let item = api.paths.paths.get_mut(route.path);
        if let Some(operation) = item.and_then(|item| operation(item, route.method)) {
            complete(operation, route);
        }
    }
    api
}

/// Adds what all operations have alike: who may ask, and what their answers are.
fn complete(operation: &mut Operation, route: &Route) {
    operation.security = Some(route.who.iter().map(|who| who.requirement()).collect());
    for response in operation.responses.responses.values_mut() {
        if let RefOr::T(response) = response {
            response.description = operation.summary.clone().unwrap_or_default();
        }
    }
    operation.responses.responses.insert("default".to_owned(), Ref::from_response_name(ERROR).into());
}

fn operation<'a>(item: &'a mut PathItem, method: &str) -> Option<&'a mut Operation> {
    match method {
        "get" => item.get.as_mut(),
        "put" => item.put.as_mut(),
        "post" => item.post.as_mut(),
        _ => None,
    }
}

fn error() -> Response {
    ResponseBuilder::new()
        .description("The request was refused or failed; `code` is for programs, `message` for people.")
        .content("application/json", Content::new(Some(Ref::from_schema_name(ErrorBody::name()))))
        .build()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_description_has_every_route_and_no_other() {
        let api = serde_json::to_value(description()).unwrap();
        let mut described = BTreeSet::new();
        for (path, item) in api["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                described.insert((method.clone(), path.clone()));
                assert!(!operation["security"].as_array().unwrap().is_empty(), "{method} {path}");
                assert_eq!(operation["responses"]["default"]["$ref"], "#/components/responses/Error");
                assert!(operation["responses"]["200"].is_object(), "{method} {path}");
                assert!(operation["summary"].is_string(), "{method} {path}");
                let in_path = |p: &&serde_json::Value| p["in"] == "path";
                let named =
                    operation["parameters"].as_array().map_or(0, |all| all.iter().filter(in_path).count());
                assert_eq!(named, path.matches('{').count(), "{method} {path}");
                assert_eq!(operation["requestBody"].is_object(), takes_body(method, path), "{method} {path}");
            }
        }
        let routed = ROUTES.iter().map(|route| (route.method.to_owned(), route.path.to_owned()));
        assert_eq!(described, routed.collect());
    }

    fn takes_body(method: &str, path: &str) -> bool {
        method != "get" && !path.ends_with("/close")
    }
}
