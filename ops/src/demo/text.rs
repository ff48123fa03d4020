//! Texts and tables to read: a guide, poems from a small grammar, and two CSV files.

use std::fmt::Write;

use super::Numbers;

pub const README: &str = "\
# Studio: sample contents

These files were made by `dozo up --demo`. They lie in a folder that the origin server registers with search, and
come to a site when a client there asks for them the first time.

| folder      | what                                                                          |
|-------------|-------------------------------------------------------------------------------|
| `poems/`    | short poems, made by a little grammar                                           |
| `tables/`   | CSV: weather stations and a year of (invented) rain                              |
| `pictures/` | PNG pictures, computed                                                         |
| `sounds/`   | WAV melodies, made of sines                                                     |
| `data/`     | two editions of a large binary that repeat themselves and differ in the middle |

Put a file of your own into this folder: within seconds it can be found and had at every site.
Ask for `data/archive-1.bin` and then for `data/archive-2.bin` at the same site, and look at `dozo status`: the second
one adds little, since most of its chunks are there already.
";

const POEM_COUNT: usize = 12;

pub fn poem_keys() -> Vec<String> {
    let numbered = (1..=POEM_COUNT).map(|n| format!("poems/{n:02}.txt"));
    numbered.chain(["poems/どうぞ.txt".to_owned()]).collect()
}

pub fn poems() -> Vec<String> {
    let mut numbers = Numbers::of("poems");
    let generated = (0..POEM_COUNT).map(|_| poem(&mut numbers));
    generated.chain(["土蔵より\n風も名前も\nどうぞまた\n".to_owned()]).collect()
}

/// Three to five stanzas.
fn poem(numbers: &mut Numbers) -> String {
    const QUALITY: &[&str] =
        &["worn", "quiet", "white", "slow", "far", "late", "small", "cold", "bright", "hollow"];
    const THING: &[&str] = &[
        "storehouse",
        "river",
        "lantern",
        "pine",
        "letter",
        "bell",
        "road",
        "moon",
        "kettle",
        "ferry",
        "snow",
    ];
    const ACT: &[&str] = &[
        "waits",
        "opens",
        "remembers",
        "turns",
        "listens",
        "crosses over",
        "burns low",
        "comes home",
        "holds on",
    ];
    const PLACE: &[&str] =
        &["by the harbour", "under the eaves", "before the rain", "beyond the hill", "in the ninth month"];
    let mut text = format!("The {} {}\n\n", numbers.pick(QUALITY), numbers.pick(THING));
    for _ in 0..3 + numbers.below(3) {
        // Writing to a String cannot fail.
        let _always_ok = write!(
            text,
            "a {} {} {},\nthe {} {} {};\n{} it is {}.\n\n",
            numbers.pick(QUALITY),
            numbers.pick(THING),
            numbers.pick(PLACE),
            numbers.pick(QUALITY),
            numbers.pick(THING),
            numbers.pick(ACT),
            numbers.pick(PLACE),
            numbers.pick(QUALITY),
        );
    }
    text
}

const STATIONS: [(&str, &str); 8] = [
    ("sapporo", "43.06,141.35"),
    ("sendai", "38.27,140.87"),
    ("tokyo", "35.68,139.77"),
    ("kanazawa", "36.56,136.66"),
    ("nagoya", "35.17,136.91"),
    ("osaka", "34.69,135.50"),
    ("fukuoka", "33.59,130.40"),
    ("naha", "26.21,127.68"),
];

pub fn stations() -> String {
    let lines = STATIONS.iter().map(|(name, place)| format!("{name},{place}\n"));
    std::iter::once("station,latitude,longitude\n".to_owned()).chain(lines).collect()
}

/// Hourly rain of a year at every station, in tenths of a millimetre.
pub fn rain() -> String {
    let mut numbers = Numbers::of("rain");
    let mut text = String::from("station,day,hour,rain_tenths_mm\n");
    for (station, _) in STATIONS {
        for day in 1..=365 {
            let wet = numbers.below(4) == 0;
            for hour in 0..24 {
                let rain = if wet { numbers.below(90) } else { 0 };
                let _always_ok = writeln!(text, "{station},{day},{hour},{rain}");
            }
        }
    }
    text
}
