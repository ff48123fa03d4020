//! The simulation of `bench traffic` against real sites, as `bench traffic --real` replays it.

use bench::traffic::real::{more, run};
use bench::traffic::topology::Topology;
use bench::traffic::trace::{Sizes, TraceParameters};

use crate::process::dozo;
use crate::turn;

fn parameters() -> TraceParameters {
    TraceParameters {
        seed: 5,
        clients: 12,
        contents: 40,
        requests: 120,
        sizes: Sizes::SMALL,
        ..TraceParameters::default()
    }
}

#[test]
fn real_sites_send_as_many_bytes_over_as_many_hops_as_the_simulation_says() {
    let Some(_turn) = turn() else { return };
    let topology = Topology::tree(2, 2).unwrap();
    let trace = parameters().generate(&topology).unwrap();
    let report = run(&trace, &topology, dozo(), |_| ()).unwrap();
    println!("{}", report.text());
    assert_eq!(report.answered, report.simulated);
    for (simulated, real) in [
        (report.simulated_bytes, report.carried.tcp_payload_bytes),
        (report.simulated_byte_hops, report.carried.tcp_payload_byte_hops),
    ] {
        let more = more(real, simulated);
        assert!(
            more.abs() <= 5.0,
            "{real} bytes or byte-hops on the links, {simulated} simulated: {more:+.2} %"
        );
    }
    // The kernel's counters say the same as the wire that joins the devices.
    let (kernel, wire) = (report.sent_by_devices, report.sent_over_wire);
    assert!(more(kernel, wire).abs() < 1.0, "{kernel} bytes by the devices' counters, {wire} over the wire");
}
