//! A dashboard in the form that Grafana loads (schema 39: Grafana 10 and later).

use serde_json::{Value, json};

use super::panel::{COLUMNS, Dashboard, Kind, Limits, Panel, Unit, with_targets};

const SCHEMA_VERSION: u32 = 39;
/// Of every dashboard of ours; the menu of dashboards is made from it.
pub const TAG: &str = "dozo";
/// Any of a variable's values, and none: servers without a site are meant as well.
const ALL: &str = ".*";

fn source() -> Value {
    json!({"type": "prometheus", "uid": "${datasource}"})
}

pub fn dashboard(dashboard: &Dashboard) -> Value {
    json!({
        "annotations": {"list": annotations()},
        "description": dashboard.description,
        "editable": false,
        "graphTooltip": 1,
        "links": [{
            "asDropdown": true, "includeVars": true, "keepTime": true, "tags": [TAG], "targetBlank": false,
            "title": "Dashboards", "tooltip": "", "type": "dashboards", "url": "", "icon": "external link",
        }],
        "panels": panels(dashboard),
        "refresh": "30s",
        "schemaVersion": SCHEMA_VERSION,
        "tags": [TAG],
        "templating": {"list": variables()},
        "time": {"from": "now-1h", "to": "now"},
        "timepicker": {},
        "timezone": "browser",
        "title": dashboard.title,
        "uid": dashboard.uid,
        "version": 1,
    })
}

fn variables() -> Value {
    let query = |name: &str, label: &str, query: &str| {
        json!({
            "allValue": ALL, "current": {"selected": true, "text": ["All"], "value": ["$__all"]},
            "datasource": source(), "definition": query, "hide": 0, "includeAll": true, "label": label,
            "multi": true, "name": name, "options": [], "query": {"query": query, "refId": name}, "refresh": 2,
            "regex": "", "skipUrlSync": false, "sort": 1, "type": "query",
        })
    };
    json!([
        {
            "current": {}, "hide": 0, "includeAll": false, "label": "Data source", "multi": false,
            "name": "datasource", "options": [], "query": "prometheus", "refresh": 1, "regex": "",
            "skipUrlSync": false, "type": "datasource",
        },
        query("job", "Role", "label_values(dozo_build_info, job)"),
        query("site", "Site", "label_values(dozo_build_info{job=~\"$job\"}, site)"),
        query("instance", "Server", "label_values(dozo_build_info{job=~\"$job\", site=~\"$site\"}, instance)"),
    ])
}

/// What happened, over every panel.
pub const ANNOTATIONS: &[(&str, &str, &str, &str)] = &[
    ("Cluster map", "max(changes(dozo_search_map_epoch{}[1m])) > 0", "the cluster map changed", "blue"),
    (
        "Server started",
        "max by (instance) (changes(dozo_start_time_seconds{}[1m])) > 0",
        "{{instance}} started",
        "purple",
    ),
    (
        "Alert",
        "max by (alertname, severity) (ALERTS{alertstate=\"firing\", severity=~\"page|ticket\"})",
        "{{alertname}} ({{severity}})",
        "red",
    ),
];

fn annotations() -> Vec<Value> {
    let own = json!({
        "builtIn": 1, "datasource": {"type": "grafana", "uid": "-- Grafana --"}, "enable": true, "hide": true,
        "iconColor": "rgba(0, 211, 255, 1)", "name": "Annotations & Alerts", "type": "dashboard",
    });
    let of = |(name, expr, title, color): &(&str, &str, &str, &str)| {
        json!({
            "datasource": source(), "enable": *name != "Alert", "expr": with_targets(expr), "hide": false,
            "iconColor": color, "name": name, "step": "30s", "titleFormat": title,
        })
    };
    std::iter::once(own).chain(ANNOTATIONS.iter().map(of)).collect()
}

/// Rows and panels from left to right, each row's below the one before.
fn panels(dashboard: &Dashboard) -> Vec<Value> {
    let mut out = Vec::new();
    let mut top = 0;
    for row in &dashboard.rows {
        let id = out.len() + 1;
        let place = json!({"h": 1, "w": COLUMNS, "x": 0, "y": top});
        out.push(json!({
            "collapsed": false, "gridPos": place, "id": id, "panels": [], "title": row.title, "type": "row",
        }));
        top += 1;
        let (mut left, mut line_height) = (0, 0);
        for each in &row.panels {
            if left + each.width > COLUMNS {
                (left, top, line_height) = (0, top + line_height, 0);
            }
            let place = json!({"h": each.height, "w": each.width, "x": left, "y": top});
            out.push(panel(each, out.len() + 1, place));
            (left, line_height) = (left + each.width, line_height.max(each.height));
        }
        top += line_height;
    }
    out
}

fn panel(panel: &Panel, id: usize, place: Value) -> Value {
    let kind = match panel.kind {
        Kind::Stat => "stat",
        Kind::TimeSeries => "timeseries",
        Kind::Heatmap => "heatmap",
        Kind::Table { .. } => "table",
        Kind::StateTimeline => "state-timeline",
        Kind::BarGauge => "bargauge",
    };
    let mut out = json!({
        "datasource": source(),
        "description": panel.description,
        "fieldConfig": {"defaults": defaults(panel), "overrides": overrides(panel)},
        "gridPos": place,
        "id": id,
        "options": options(panel),
        "targets": targets(panel),
        "title": panel.title,
        "type": kind,
    });
    if let Kind::Table { by } = panel.kind {
        out["transformations"] = transformations(panel, by);
    }
    out
}

fn ref_id(place: usize) -> String {
    char::from_u32('A' as u32 + place as u32).unwrap_or('Z').to_string()
}

fn targets(panel: &Panel) -> Vec<Value> {
    let is_table = matches!(panel.kind, Kind::Table { .. });
    let is_now = is_table || panel.kind == Kind::BarGauge;
    let format = match panel.kind {
        Kind::Table { .. } => "table",
        Kind::Heatmap => "heatmap",
        _ => "time_series",
    };
    let target = |(place, query): (usize, &super::panel::Query)| {
        json!({
            "datasource": source(), "editorMode": "code", "expr": with_targets(&query.expr), "format": format,
            "instant": is_now, "legendFormat": if is_table { "" } else { &query.legend }, "range": !is_now,
            "refId": ref_id(place),
        })
    };
    panel.queries.iter().enumerate().map(target).collect()
}

fn thresholds(limits: Limits) -> Value {
    let step = |color: &str, value: Option<f64>| json!({"color": color, "value": value});
    let steps = match limits {
        Limits::None => vec![step("blue", None)],
        Limits::Above(amber, red) => {
            vec![step("green", None), step("orange", Some(amber)), step("red", Some(red))]
        }
        Limits::Below(amber, red) => {
            vec![step("red", None), step("orange", Some(red)), step("green", Some(amber))]
        }
    };
    json!({"mode": "absolute", "steps": steps})
}

fn defaults(panel: &Panel) -> Value {
    let mut out = json!({
        "color": {"mode": "palette-classic"}, "thresholds": thresholds(panel.limits), "unit": panel.unit.id(),
    });
    let low_values_matter = matches!(panel.unit, Unit::Ratio | Unit::YesNo);
    match panel.kind {
        Kind::Stat | Kind::BarGauge | Kind::StateTimeline => out["color"] = json!({"mode": "thresholds"}),
        Kind::TimeSeries => {
            out["custom"] = json!({
                "drawStyle": "line", "fillOpacity": if panel.is_stacked { 30 } else { 8 }, "lineWidth": 1,
                "showPoints": "never", "spanNulls": false,
                "stacking": {"group": "A", "mode": if panel.is_stacked { "normal" } else { "none" }},
                "thresholdsStyle": {"mode": if panel.limits == Limits::None { "off" } else { "dashed" }},
            });
            out["min"] = if low_values_matter || panel.is_stacked { json!(0) } else { Value::Null };
        }
        Kind::Heatmap | Kind::Table { .. } => {}
    }
    if panel.kind == Kind::StateTimeline {
        out["custom"] = json!({"fillOpacity": 70, "lineWidth": 0});
    }
    if !panel.names.is_empty() {
        let named = panel.names.iter().enumerate().map(|(index, (value, text, color))| {
            (value.to_string(), json!({"color": color, "index": index, "text": text}))
        });
        let options: serde_json::Map<_, _> = named.collect();
        out["mappings"] = json!([{"options": options, "type": "value"}]);
    }
    if let Some(max) = panel.max {
        (out["min"], out["max"]) = (json!(0), json!(max));
    }
    out
}

/// The unit of each column.
fn overrides(panel: &Panel) -> Vec<Value> {
    let of = |(place, query): (usize, &super::panel::Query)| {
        let unit = query.unit?;
        Some(json!({
            "matcher": {"id": "byName", "options": format!("Value #{}", ref_id(place))},
            "properties": [{"id": "unit", "value": unit.id()}, {"id": "displayName", "value": query.legend}],
        }))
    };
    panel.queries.iter().enumerate().filter_map(of).collect()
}

fn options(panel: &Panel) -> Value {
    let last = json!({"calcs": ["lastNotNull"], "fields": "", "values": false});
    match panel.kind {
        Kind::Stat => json!({
            "colorMode": "value", "graphMode": "area", "justifyMode": "auto", "orientation": "auto",
            "reduceOptions": last, "textMode": "value",
        }),
        Kind::TimeSeries => json!({
            "legend": {"calcs": ["lastNotNull", "max"], "displayMode": "table", "placement": "bottom", "showLegend": true},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }),
        Kind::Heatmap => json!({
            "calculate": false, "cellGap": 1, "color": {"exponent": 0.5, "mode": "scheme", "scheme": "Oranges", "steps": 64},
            "filterValues": {"le": 1e-9}, "legend": {"show": true}, "rowsFrame": {"layout": "auto"},
            "tooltip": {"mode": "single", "showColorScale": true, "yHistogram": false},
            "yAxis": {"axisPlacement": "left", "reverse": false, "unit": panel.unit.id()},
        }),
        Kind::Table { .. } => json!({"cellHeight": "sm", "footer": {"show": false}, "showHeader": true}),
        Kind::StateTimeline => json!({
            "alignValue": "left", "legend": {"displayMode": "list", "placement": "bottom", "showLegend": true},
            "mergeValues": true, "rowHeight": 0.8, "showValue": "auto", "tooltip": {"mode": "single", "sort": "none"},
        }),
        Kind::BarGauge => json!({
            "displayMode": "gradient", "orientation": "horizontal", "reduceOptions": last, "showUnfilled": true,
        }),
    }
}

/// Columns of one row beside each other, without the time.
fn transformations(panel: &Panel, by: &str) -> Value {
    if panel.queries.len() == 1 {
        return json!([{"id": "organize", "options": {"excludeByName": {"Time": true}, "renameByName": {}}}]);
    }
    let times = (1..=panel.queries.len()).map(|place| (format!("Time {place}"), json!(true)));
    let hidden: serde_json::Map<_, _> = times.chain([("Time".to_owned(), json!(true))]).collect();
    json!([
        {"id": "joinByField", "options": {"byField": by, "mode": "outer"}},
        {"id": "organize", "options": {"excludeByName": hidden, "renameByName": {}}},
    ])
}
