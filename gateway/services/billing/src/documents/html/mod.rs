//! Documents as one self-contained HTML page: read in a browser, printed on A4 (or to PDF) from there.
//!
//! The page says what a qualified invoice must say: issuer and registration number, addressee, period, each line,
//! the net and the tax of its rate. Its language is the addressee's: Japanese in Japan, elsewhere English. Nothing
//! in it runs or loads, and every text is escaped.

mod labels;

use common::html::escape;
use common::money::Currency;

use super::amount::{exact, whole};
use super::ubl::percent;
use super::{Invoice, InvoiceKind, InvoiceLine, LineKind, PartyView, Statement, StatementLine};
use labels::Labels;

const STYLE: &str = include_str!("style.css");

/// An invoice, a credit note or the draft of one.
pub fn invoice(invoice: &Invoice) -> String {
    let labels = Labels::of(invoice.customer.country.as_deref());
    let (title, total_label, due, corrects) = match &invoice.kind {
        InvoiceKind::Invoice => (labels.invoice, labels.total_due, invoice.due_date.as_deref(), None),
        InvoiceKind::CreditNote { of } => {
            (labels.credit_note, labels.total_credited, None, Some(of.as_str()))
        }
    };
    let period = format!("{} – {}", invoice.period_begin, invoice.period_end);
    let money = Shown::of(
        invoice.currency,
        invoice.lines.iter().map(|line| line.amount_micros).chain([invoice.rounding_micros]),
    );
    let mut page = Page::begin(labels, title, invoice.number.as_deref(), invoice.issued_ms.is_none());
    page.header(&[
        (labels.number, invoice.number.as_deref()),
        (labels.issued, invoice.issue_date.as_deref()),
        (labels.due, due),
        (labels.period, Some(&period)),
        (labels.corrects, corrects),
    ]);
    page.parties((labels.customer, &invoice.customer), (labels.issuer, &invoice.issuer));
    page.due(total_label, &money.whole(invoice.total_minor));
    let rows = invoice.lines.iter().map(|line| {
        let amount = money.exact(line.amount_micros);
        let (deliveries, bytes) = (grouped(line.deliveries), grouped(line.bytes_sent));
        (
            line.usage_period.as_str(),
            line.late,
            describe(labels, invoice, line),
            vec![deliveries, bytes, amount],
        )
    });
    page.table(&[labels.deliveries, labels.bytes, labels.amount], rows);
    let rate = percent(invoice.tax_basis_points);
    page.sums(&[
        (labels.charges, money.exact(invoice.charges_micros)),
        (labels.rounding, money.exact(invoice.rounding_micros)),
        (labels.net, money.whole(invoice.net_minor)),
        (&format!("{} {rate}%", labels.tax), money.whole(invoice.tax_minor)),
        (labels.total, money.whole(invoice.total_minor)),
    ]);
    page.end(labels.invoice_note)
}

/// A payout statement or the draft of one.
pub fn statement(statement: &Statement) -> String {
    let labels = Labels::of(statement.party.country.as_deref());
    let money = Shown::of(
        statement.currency,
        statement.lines.iter().map(|line| line.amount_micros).chain([statement.opening_micros]),
    );
    let mut page =
        Page::begin(labels, labels.statement, statement.number.as_deref(), statement.issued_ms.is_none());
    page.header(&[
        (labels.number, statement.number.as_deref()),
        (labels.issued, statement.issue_date.as_deref()),
        (labels.period, Some(&statement.period)),
    ]);
    page.parties((labels.payee, &statement.party), (labels.issuer, &statement.issuer));
    let method = statement.payout_method.map(|method| format!(" ({})", labels.word(method.as_str())));
    let method = method.unwrap_or_default();
    page.due(&format!("{}{method}", labels.paid_out), &money.whole(statement.payout_minor));
    let rows = statement.lines.iter().map(|line| {
        let amount = money.exact(line.amount_micros);
        let description = describe_share(labels, statement, line);
        (line.usage_period.as_str(), line.late, description, vec![grouped(line.deliveries), amount])
    });
    page.table(&[labels.deliveries, labels.amount], rows);
    let payout = statement.payout_minor.checked_neg().map_or_else(String::new, |minor| money.whole(minor));
    page.sums(&[
        (labels.opening, money.exact(statement.opening_micros)),
        (labels.earned, money.exact(statement.earned_micros)),
        (labels.balance, money.exact(statement.balance_micros)),
        (&format!("{}{method}", labels.payout), payout),
        (labels.carried, money.exact(statement.carried_micros)),
    ]);
    page.end(labels.statement_note)
}

fn describe(labels: &Labels, invoice: &Invoice, line: &InvoiceLine) -> String {
    let kind = (line.kind != LineKind::Usage).then(|| labels.word(line.kind.as_str()));
    let class = line.class.as_deref().map(|class| labels.word(class));
    let path = line.path.as_deref().map(|path| labels.word(path));
    join([Some(labels.word(invoice.fee.as_str())), kind, class, path])
}

fn describe_share(labels: &Labels, statement: &Statement, line: &StatementLine) -> String {
    let kind = (line.kind != LineKind::Usage).then(|| labels.word(line.kind.as_str()));
    // A part and a path may share their name (origin), but not their words.
    let key = format!("part:{}", line.part);
    let part = labels.word(&key);
    let part = part.strip_prefix("part:").unwrap_or(part);
    let class = line.class.as_deref().map(|class| labels.word(class));
    let path = line.path.as_deref().map(|path| labels.word(path));
    join([Some(labels.word(statement.fee.as_str())), Some(part), kind, class, path])
}

fn join<const N: usize>(parts: [Option<&str>; N]) -> String {
    parts.into_iter().flatten().collect::<Vec<_>>().join(" · ")
}

/// How a document shows amounts: exact ones all with the same number of digits, so that they line up.
struct Shown {
    currency: Currency,
    digits: usize,
}

impl Shown {
    fn of(currency: Currency, amounts_micros: impl Iterator<Item = i64>) -> Self {
        let digits =
            |micros| exact(micros, currency).split_once('.').map_or(0, |(_, fraction)| fraction.len());
        let least = currency.exponent() as usize;
        Self { currency, digits: amounts_micros.map(digits).max().unwrap_or(0).max(least) }
    }

    fn exact(&self, micros: i64) -> String {
        self.show(&exact(micros, self.currency), self.digits)
    }

    fn whole(&self, minor: i64) -> String {
        self.show(&whole(minor, self.currency), self.currency.exponent() as usize)
    }

    /// `-1234.5` -> `-€1,234.50`.
    fn show(&self, decimal: &str, digits: usize) -> String {
        let (sign, decimal) = decimal.strip_prefix('-').map_or(("", decimal), |rest| ("-", rest));
        let (units, fraction) = decimal.split_once('.').unwrap_or((decimal, ""));
        let point = if digits > 0 { "." } else { "" };
        let number = format!("{}{point}{fraction:0<digits$}", group(units));
        match self.currency {
            Currency::Jpy => format!("{sign}¥{number}"),
            Currency::Eur => format!("{sign}€{number}"),
            Currency::Usd => format!("{sign}${number}"),
            Currency::Xdz => format!("{sign}{number} XDZ"),
        }
    }
}

fn grouped(number: i64) -> String {
    let sign = if number < 0 { "-" } else { "" };
    format!("{sign}{}", group(&number.unsigned_abs().to_string()))
}

/// A comma after each three digits, from the right.
fn group(digits: &str) -> String {
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A page under way.
struct Page {
    html: String,
    labels: &'static Labels,
    draft: bool,
    title: &'static str,
}

impl Page {
    fn begin(labels: &'static Labels, title: &'static str, number: Option<&str>, draft: bool) -> Self {
        let mut page = Self { html: String::new(), labels, draft, title };
        let tab = [title, number.unwrap_or_default()].join(" ");
        page.push(&format!(
            "<!doctype html>\n<html lang=\"{}\">\n<head>\n<meta charset=\"utf-8\">\n",
            labels.language
        ));
        page.push("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n");
        page.push("<meta http-equiv=\"Content-Security-Policy\" ");
        page.push("content=\"default-src 'none'; style-src 'unsafe-inline'\">\n");
        page.push(&format!(
            "<title>{}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n",
            escape(tab.trim())
        ));
        page
    }

    fn header(&mut self, facts: &[(&str, Option<&str>)]) {
        self.push(&format!("<header>\n<h1>{}</h1>\n<dl>\n", self.title));
        for (label, value) in facts {
            if let Some(value) = value {
                self.push(&format!("<dt>{label}</dt><dd>{}</dd>\n", escape(value)));
            }
        }
        self.push("</dl>\n</header>\n");
        if self.draft {
            self.push(&format!("<p class=\"draft\">{}</p>\n", self.labels.draft));
        }
    }

    fn parties(&mut self, addressee: (&str, &PartyView), issuer: (&str, &PartyView)) {
        self.push("<section class=\"parties\">\n");
        self.party(addressee, self.labels.honorific);
        self.party(issuer, "");
        self.push("</section>\n");
    }

    fn party(&mut self, (label, party): (&str, &PartyView), honorific: &str) {
        let name = escape(&party.name);
        self.push(&format!("<div>\n<h2>{label}</h2>\n<p class=\"name\">{name}{honorific}</p>\n"));
        let registration =
            party.registration_number.as_ref().map(|number| format!("{} {number}", self.labels.registration));
        let lines = [&party.address, &party.country, &party.email, &registration].into_iter().flatten();
        for line in lines {
            self.push(&format!("<p>{}</p>\n", escape(line)));
        }
        self.push(&format!("<p>{}</p>\n</div>\n", escape(&party.party)));
    }

    fn due(&mut self, label: &str, amount: &str) {
        self.push(&format!("<p class=\"due\"><span>{label}</span><b>{amount}</b></p>\n"));
    }

    /// Rows of month, late, description and numbers.
    fn table<'a>(
        &mut self,
        columns: &[&str],
        rows: impl Iterator<Item = (&'a str, bool, String, Vec<String>)>,
    ) {
        let (month, description) = (self.labels.month, self.labels.description);
        self.push(&format!("<table>\n<thead><tr><th>{month}</th><th>{description}</th>"));
        for column in columns {
            self.push(&format!("<th class=\"n\">{column}</th>"));
        }
        self.push("</tr></thead>\n<tbody>\n");
        let mut empty = true;
        for (month, late, description, numbers) in rows {
            empty = false;
            let mark = match late {
                true => format!("<span class=\"mark\">{}</span>", self.labels.word("late")),
                false => String::new(),
            };
            let (month, description) = (escape(month), escape(&description));
            self.push(&format!("<tr><td class=\"month\">{month}</td><td>{description}{mark}</td>"));
            for number in numbers {
                self.push(&format!("<td class=\"n\">{number}</td>"));
            }
            self.push("</tr>\n");
        }
        if empty {
            let nothing = self.labels.nothing;
            self.push(&format!("<tr><td colspan=\"{}\">{nothing}</td></tr>\n", columns.len() + 2));
        }
        self.push("</tbody>\n</table>\n");
    }

    fn sums(&mut self, sums: &[(&str, String)]) {
        self.push("<table class=\"sums\">\n");
        for (label, amount) in sums {
            self.push(&format!("<tr><td>{label}</td><td class=\"n\">{amount}</td></tr>\n"));
        }
        self.push("</table>\n");
    }

    fn end(mut self, note: &str) -> String {
        self.push(&format!("<footer>{note}</footer>\n</main>\n</body>\n</html>\n"));
        self.html
    }

    fn push(&mut self, html: &str) {
        self.html.push_str(html);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::samples;
    use super::*;

    fn assert_parts(page: &str, parts: &[&str]) {
        for part in parts {
            assert!(page.contains(part), "{part} is not in {page}");
        }
    }

    #[test]
    fn an_invoice_says_what_a_qualified_invoice_must() {
        let page = invoice(&samples::invoice());
        assert_parts(
            &page,
            &[
                "<html lang=\"en\">",
                "<title>Invoice S-0000012</title>",
                "Bob &amp; &lt;Sons&gt; &quot;Ltd&quot;",
                "Registration number T1234567890123",
                "2026-10-01 – 2026-10-31",
                "<b>¥237</b>",
                "<td class=\"n\">¥124.691</td>",
                "Service fee · reference · from the home site<span class=\"mark\">late</span>",
                "<td>Rounding</td><td class=\"n\">¥0.500</td>",
                "<td>Tax 10%</td><td class=\"n\">¥21</td>",
            ],
        );
        assert!(
            !page.contains("<p class=\"draft\">") && !page.contains("http://") && !page.contains("<script")
        );
        let mut japanese = samples::credit_note();
        japanese.customer.country = Some("JP".into());
        japanese.issued_ms = None;
        let page = invoice(&japanese);
        assert_parts(&page, &["<html lang=\"ja\">", "返還請求書", "御中", "S-0000012", "下書き", "登録番号"]);
    }

    #[test]
    fn a_statement_goes_from_opening_to_carried() {
        let page = statement(&samples::statement());
        assert_parts(
            &page,
            &[
                "支払明細書",
                "東京配信株式会社",
                "<b>¥1,234</b>",
                "配信料 · ホームサイト · 他サイトから",
                "<td>前月からの繰越</td><td class=\"n\">¥0.250</td>",
                "<td>お支払 (銀行振込)</td><td class=\"n\">-¥1,234</td>",
                "<td>翌月への繰越</td><td class=\"n\">¥0.817</td>",
            ],
        );
        let empty = Statement { lines: Vec::new(), ..samples::statement() };
        assert_parts(&statement(&empty), &["<td colspan=\"4\">この月の明細はありません。</td>"]);
        let mut unknown = samples::statement();
        unknown.lines[0].part = "<b>".into();
        assert_parts(&statement(&unknown), &["配信料 · &lt;b&gt; · "]);
    }

    #[test]
    fn amounts_are_shown_as_their_currency_is() {
        let show = |currency, micros: &[i64], minor| {
            let shown = Shown::of(currency, micros.iter().copied());
            (shown.exact(micros[0]), shown.whole(minor))
        };
        let euro = show(Currency::Eur, &[-123_456_789_000_000, 1], -5);
        assert_eq!(euro, ("-€1,234,567.89000000".into(), "-€0.05".into()));
        assert_eq!(show(Currency::Eur, &[100_000_000], 100_000), ("€1.00".into(), "€1,000.00".into()));
        assert_eq!(show(Currency::Xdz, &[1_500_000], 1_000), ("1.5 XDZ".into(), "1,000 XDZ".into()));
        assert_eq!(grouped(i64::MIN), "-9,223,372,036,854,775,808");
        assert_eq!(
            ["1", "12", "123", "1234", "1234567"].map(group),
            ["1", "12", "123", "1,234", "1,234,567"]
        );
    }

    proptest! {
        #[test]
        fn no_text_of_a_party_becomes_markup(text in ".{0,60}") {
            let mut document = samples::invoice();
            let usual = invoice(&document).matches(['<', '>']).count();
            document.customer.name = text.clone();
            document.lines[0].usage_period = text.clone();
            document.lines[0].path = Some(text.clone());
            document.issuer.email = Some(text);
            // Two more paragraph tags for the email.
            prop_assert_eq!(invoice(&document).matches(['<', '>']).count(), usual + 4);
        }
    }
}
