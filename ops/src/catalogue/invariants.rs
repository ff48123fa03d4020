//! What holds at every moment, whatever fails, and which tests and commands would see it broken.

use std::fmt::Write;

use super::cell;

pub struct Invariant {
    pub id: &'static str,
    pub says: &'static str,
    /// Names of test functions.
    pub tests: &'static [&'static str],
    /// What an operator runs to see it.
    pub command: Option<&'static str>,
}

const VERIFY: Option<&str> = Some("dozo billing verify");
const RECONCILE: Option<&str> = Some("dozo billing reconcile 2026-10");
const FSCK: Option<&str> = Some("dozo fsck --store file:/srv/dozo/n1.img --data-dir /srv/dozo/n1");

pub const INVARIANTS: &[Invariant] = &[
    Invariant {
        id: "S1",
        says: "What was acknowledged as stored survives a crash of any process and a power cut at any write.",
        tests: &[
            "everything_acknowledged_survives_two_crashes_at_any_writes",
            "histories_of_three_survive_a_crash_at_each_write",
            "everything_killed_at_once_loses_nothing_acknowledged",
        ],
        command: FSCK,
    },
    Invariant {
        id: "S2",
        says: "A change is there wholly or not at all, and damaged bytes are never answered as good ones.",
        tests: &[
            "a_change_that_was_not_acknowledged_is_there_wholly_or_not_at_all",
            "a_damaged_chunk_is_never_answered_and_can_be_replaced",
            "a_damaged_chunk_is_never_sent_and_a_good_copy_takes_its_place",
        ],
        command: Some("dozo scrub"),
    },
    Invariant {
        id: "S3",
        says: "A chunk is deleted only when no holding refers to it, and equal chunks of a site are stored once.",
        tests: &[
            "no_sequence_of_maps_loses_a_chunk_or_a_reference",
            "chunks_of_what_was_replaced_or_withdrawn_are_deleted_on_every_node",
            "the_same_bytes_are_stored_once",
        ],
        command: Some("dozo scrub"),
    },
    Invariant {
        id: "S4",
        says: "Nodes come and go without a failed request: whatever moves is readable and takes changes all the while.",
        tests: &[
            "a_node_that_joins_under_load_is_written_to_at_once_and_no_request_fails",
            "a_node_is_drained_undrained_drained_and_removed_and_no_request_fails",
            "a_killed_node_costs_no_request_and_serves_its_shard_again_when_it_is_back",
        ],
        command: Some("dozo status"),
    },
    Invariant {
        id: "S5",
        says: "With two copies, or three, any node may be lost and all that was acknowledged is there.",
        tests: &[
            "every_node_may_be_lost_in_turn_while_writes_go_on",
            "under_load_any_losses_keep_what_was_acknowledged_with_two_copies",
            "under_load_any_losses_keep_what_was_acknowledged_with_three_copies",
        ],
        command: Some("dozo node list"),
    },
    Invariant {
        id: "D1",
        says: "A delivery's begin is durable before its first byte goes out, and every begun delivery ends in one record.",
        tests: &[
            "killed_in_the_middle_of_a_get_every_delivery_is_booked_once",
            "killed_and_cut_at_each_step_what_clients_saw_is_what_both_servers_booked",
            "deliveries_that_nobody_completes_are_booked_as_what_they_were",
        ],
        command: RECONCILE,
    },
    Invariant {
        id: "D2",
        says: "The bytes of one delivery are of one version of the content, and have its hash.",
        tests: &["an_original_that_changes_while_it_is_collected_is_never_delivered_mixed"],
        command: None,
    },
    Invariant {
        id: "D3",
        says: "However many ask a site for what it lacks, it is collected once.",
        tests: &[
            "a_hundred_cold_clients_at_three_gateways_cost_one_collection",
            "many_who_ask_at_once_cost_one_collection",
        ],
        command: None,
    },
    Invariant {
        id: "D4",
        says: "Search finds what sites hold: a directory that lost data is told everything again.",
        tests: &[
            "a_silent_site_is_not_offered_and_a_directory_that_lost_data_is_told_everything_again",
            "slots_that_move_while_everything_is_told_anew_are_in_some_snapshot",
        ],
        command: Some("dozo search resync tokyo"),
    },
    Invariant {
        id: "I1",
        says: "The lines of each journal sum to zero, in whole numbers.",
        tests: &["the_database_itself_refuses_to_forget_or_to_unbalance"],
        command: VERIFY,
    },
    Invariant {
        id: "I2",
        says: "The balance of each account is the sum of its postings.",
        tests: &["verify_finds_what_was_changed_behind_its_back"],
        command: VERIFY,
    },
    Invariant {
        id: "I3",
        says: "The records of a node and epoch are 1, 2, 3 … without a gap, and each carries the digest of the one before.",
        tests: &[
            "contradicting_records_are_quarantined_and_nothing_of_their_batch_is_booked",
            "what_contradicts_the_books_is_refused_and_counted_and_nothing_of_it_is_booked",
        ],
        command: VERIFY,
    },
    Invariant {
        id: "I4",
        says: "What is invoiced is what payees get, tax and rounding.",
        tests: &["amounts_of_an_invoice_sum_to_its_total", "the_worked_month_comes_out_as_it_is_written"],
        command: VERIFY,
    },
    Invariant {
        id: "I5",
        says: "Service billing and content billing hold the same set of records.",
        tests: &[
            "a_delivery_is_on_both_billing_servers_exactly_once",
            "what_was_quoted_is_charged_and_logs_and_books_agree",
        ],
        command: RECONCILE,
    },
    Invariant {
        id: "I6",
        says: "Batches that come again, late or in another order give the same books, to the byte.",
        tests: &["any_order_cut_and_repetition_of_batches_gives_the_same_books"],
        command: None,
    },
    Invariant {
        id: "I7",
        says: "Every complete delivery is billed exactly once, or listed as an exception.",
        tests: &[
            "the_books_are_what_the_model_says",
            "what_cannot_be_rated_waits_and_is_booked_when_a_tariff_comes",
        ],
        command: RECONCILE,
    },
    Invariant {
        id: "I8",
        says: "The orders of a bank file sum to its trailer, and to the statements that they pay.",
        tests: &["sums_that_do_not_follow_are_named", "another_program_reads_transfers_as_they_were_meant"],
        command: None,
    },
    Invariant {
        id: "I9",
        says: "What is computed anew from the records is what was stored.",
        tests: &["verify_finds_what_was_changed_behind_its_back"],
        command: VERIFY,
    },
    Invariant {
        id: "I10",
        says: "The shares of a charge sum to it exactly, each within one unit of its exact part.",
        tests: &["shares_always_sum_to_the_charge"],
        command: VERIFY,
    },
];

/// The invariants as Markdown.
pub fn invariants() -> String {
    let mut text = String::from(
        "# Invariants\n\n\
         What holds at every moment: S of storage, D of delivery, I of the books. Beside each the tests that would see it \
         broken, and what an operator runs to look. Generated by `dozo catalogue invariants`.\n\n\
         | | | tests | command |\n|---|---|---|---|\n",
    );
    for Invariant { id, says, tests, command } in INVARIANTS {
        let tests: Vec<_> = tests.iter().map(|test| format!("`{test}`")).collect();
        let command = command.map_or_else(String::new, |command| format!("`{command}`"));
        let _ = writeln!(text, "| {id} | {} | {} | {command} |", cell(says), tests.join(", "));
    }
    text
}
