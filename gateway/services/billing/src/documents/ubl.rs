//! Invoices and credit notes as UBL 2.1, with the meaning that EN 16931 gives its elements.
//!
//! The standard knows amounts of two decimals at most, and the lines must sum to the net exactly. Ours are exact to a
//! millionth; so each line carries its whole-unit share of the net ([`Invoice::line_amounts_minor`]), its exact
//! amount stands beside it as an item property, and a note says so. The price of a line is that of all its
//! deliveries together (base quantity = quantity), since a price a piece would be rounded as well.
//!
//! The tax is the document's own: the floor of net x rate. EN 16931 allows the difference to half up.
//!
//! A Japanese registration number is no VAT number (those begin with a country): a seller's is its tax
//! registration, a buyer's its legal registration, with the scheme of ISO 6523 that is made for it.

use common::money::{Currency, MICROS_PER_MINOR};

use super::amount::{exact, whole};
use super::{Inconsistent, Invoice, InvoiceKind, InvoiceLine, LineKind, PartyView, is_date};
use crate::xml::Xml;

const CAC: &str = "urn:oasis:names:specification:ubl:schema:xsd:CommonAggregateComponents-2";
const CBC: &str = "urn:oasis:names:specification:ubl:schema:xsd:CommonBasicComponents-2";
/// The rules that the document keeps: EN 16931 itself, no country's or network's extension of it.
const CUSTOMIZATION: &str = "urn:cen.eu:en16931:2017";
/// Billing as Peppol names the process; EN 16931 leaves the name open.
const PROFILE: &str = "urn:fdc:peppol.eu:2017:poacc:billing:01:1.0";
/// Registered number of the qualified invoice issuer (Japan), in ISO 6523.
const JAPANESE_REGISTRATION: &str = "0221";

/// Why a document cannot be an e-invoice.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UblError {
    #[error("the document is a draft: it gets its number and day when its period is closed")]
    Draft,
    #[error("{} is no currency of ISO 4217: an e-invoice cannot be in it, use JSON, CSV or HTML", .0.code())]
    Currency(Currency),
    #[error("{field} is missing, EN 16931 wants it: store it with the party")]
    Missing { field: &'static str },
    #[error("{field} {given:?} is not {rule}")]
    Invalid { field: &'static str, given: String, rule: &'static str },
    #[error("the document has no lines, EN 16931 wants at least one")]
    NoLines,
    #[error(transparent)]
    Inconsistent(#[from] Inconsistent),
}

/// An issued invoice or credit note, as UTF-8.
pub fn write(invoice: &Invoice) -> Result<Vec<u8>, UblError> {
    let issued = checked(invoice)?;
    let (root, lines_in) = match invoice.kind {
        InvoiceKind::Invoice => ("Invoice", "cac:InvoiceLine"),
        InvoiceKind::CreditNote { .. } => ("CreditNote", "cac:CreditNoteLine"),
    };
    let namespace = format!("urn:oasis:names:specification:ubl:schema:xsd:{root}-2");
    let namespaces = [("xmlns", namespace.as_str()), ("xmlns:cac", CAC), ("xmlns:cbc", CBC)];
    Ok(Xml::document(root, &namespaces, |xml| {
        push_head(xml, invoice, &issued);
        xml.element("cac:AccountingSupplierParty", |xml| {
            push_party(xml, &invoice.issuer, &issued, Role::Seller);
        });
        xml.element("cac:AccountingCustomerParty", |xml| {
            push_party(xml, &invoice.customer, &issued, Role::Buyer);
        });
        if matches!(invoice.kind, InvoiceKind::CreditNote { .. }) {
            xml.element("cac:PaymentTerms", |xml| {
                xml.text("cbc:Note", "Credited to the customer's account; nothing is to be paid.");
            });
        }
        push_totals(xml, invoice, &issued);
        for (index, (line, minor)) in invoice.lines.iter().zip(&issued.line_amounts).enumerate() {
            xml.element(lines_in, |xml| push_line(xml, invoice, &issued, index + 1, line, *minor));
        }
    }))
}

/// What an issued document has beyond a draft, and what is worked out once.
struct Issued<'a> {
    number: &'a str,
    issue_date: &'a str,
    tax: TaxCategory,
    line_amounts: Vec<i64>,
}

/// UNCL 5305.
#[derive(Clone, Copy, PartialEq, Eq)]
enum TaxCategory {
    Standard,
    /// The issuer is registered, the rate is 0.
    Zero,
    /// The issuer is not registered for tax at all.
    NotSubject,
}

impl TaxCategory {
    fn code(self) -> &'static str {
        match self {
            Self::Standard => "S",
            Self::Zero => "Z",
            Self::NotSubject => "O",
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Seller,
    Buyer,
}

fn checked(invoice: &Invoice) -> Result<Issued<'_>, UblError> {
    if invoice.currency == Currency::Xdz {
        return Err(UblError::Currency(invoice.currency));
    }
    let (Some(number), Some(issue_date)) = (&invoice.number, &invoice.issue_date) else {
        return Err(UblError::Draft);
    };
    if invoice.lines.is_empty() {
        return Err(UblError::NoLines);
    }
    invoice.check()?;
    let dates = [
        ("issue_date", Some(issue_date)),
        ("due_date", invoice.due_date.as_ref()),
        ("period_begin", Some(&invoice.period_begin)),
        ("period_end", Some(&invoice.period_end)),
    ];
    for (field, date) in dates {
        if let Some(date) = date.filter(|date| !is_date(date)) {
            return Err(UblError::Invalid { field, given: date.clone(), rule: "a day as YYYY-MM-DD" });
        }
    }
    if invoice.kind == InvoiceKind::Invoice && invoice.due_date.is_none() {
        return Err(UblError::Missing { field: "due_date" });
    }
    for (field, country) in
        [("issuer.country", &invoice.issuer.country), ("customer.country", &invoice.customer.country)]
    {
        let country = country.as_ref().ok_or(UblError::Missing { field })?;
        if country.len() != 2 || !country.bytes().all(|b| b.is_ascii_uppercase()) {
            let rule = "a country's two capital letters of ISO 3166";
            return Err(UblError::Invalid { field, given: country.clone(), rule });
        }
    }
    let tax = match (invoice.tax_basis_points, &invoice.issuer.registration_number) {
        (0, None) => TaxCategory::NotSubject,
        (0, Some(_)) => TaxCategory::Zero,
        (_, Some(_)) => TaxCategory::Standard,
        (_, None) => return Err(UblError::Missing { field: "issuer.registration_number" }),
    };
    Ok(Issued { number, issue_date, tax, line_amounts: invoice.line_amounts_minor() })
}

fn push_head(xml: &mut Xml, invoice: &Invoice, issued: &Issued<'_>) {
    xml.text("cbc:CustomizationID", CUSTOMIZATION);
    xml.text("cbc:ProfileID", PROFILE);
    xml.text("cbc:ID", issued.number);
    xml.text("cbc:IssueDate", issued.issue_date);
    match &invoice.kind {
        InvoiceKind::Invoice => {
            if let Some(due_date) = &invoice.due_date {
                xml.text("cbc:DueDate", due_date);
            }
            xml.text("cbc:InvoiceTypeCode", "380");
        }
        InvoiceKind::CreditNote { .. } => xml.text("cbc:CreditNoteTypeCode", "381"),
    }
    if invoice.lines.iter().any(|line| line.amount_micros % MICROS_PER_MINOR != 0) {
        xml.text(
            "cbc:Note",
            "Line amounts are whole shares of the net amount (largest remainder); \
             the exact amount of each line is its property ExactAmount.",
        );
    }
    xml.text("cbc:DocumentCurrencyCode", invoice.currency.code());
    xml.text("cbc:BuyerReference", &invoice.customer.party);
    xml.element("cac:InvoicePeriod", |xml| {
        xml.text("cbc:StartDate", &invoice.period_begin);
        xml.text("cbc:EndDate", &invoice.period_end);
    });
    if let InvoiceKind::CreditNote { of } = &invoice.kind {
        xml.element("cac:BillingReference", |xml| {
            xml.element("cac:InvoiceDocumentReference", |xml| xml.text("cbc:ID", of));
        });
    }
}

fn push_party(xml: &mut Xml, party: &PartyView, issued: &Issued<'_>, role: Role) {
    let japanese = party.registration_number.as_ref().filter(|number| is_japanese_registration(number));
    xml.element("cac:Party", |xml| {
        match (japanese, &party.email) {
            (_, Some(email)) => xml.text_with("cbc:EndpointID", &[("schemeID", "EM")], email),
            (Some(number), None) => {
                xml.text_with("cbc:EndpointID", &[("schemeID", JAPANESE_REGISTRATION)], number);
            }
            (None, None) => {}
        }
        xml.element("cac:PartyIdentification", |xml| xml.text("cbc:ID", &party.party));
        xml.element("cac:PostalAddress", |xml| push_address(xml, party));
        if let Some(number) = &party.registration_number {
            let scheme = match (japanese, role) {
                // EN 16931 forbids a buyer's VAT number where no tax applies.
                (None, Role::Buyer) => (issued.tax != TaxCategory::NotSubject).then_some("VAT"),
                (None, Role::Seller) => Some("VAT"),
                (Some(_), Role::Seller) => Some("TAX"),
                (Some(_), Role::Buyer) => None,
            };
            if let Some(scheme) = scheme {
                xml.element("cac:PartyTaxScheme", |xml| {
                    xml.text("cbc:CompanyID", number);
                    push_scheme(xml, scheme);
                });
            }
        }
        xml.element("cac:PartyLegalEntity", |xml| {
            xml.text("cbc:RegistrationName", &party.name);
            if let Some(number) = japanese {
                xml.text_with("cbc:CompanyID", &[("schemeID", JAPANESE_REGISTRATION)], number);
            }
        });
        if let Some(email) = &party.email {
            xml.element("cac:Contact", |xml| xml.text("cbc:ElectronicMail", email));
        }
    });
}

/// The address is free text: its first two lines have elements of their own, the rest shares one.
fn push_address(xml: &mut Xml, party: &PartyView) {
    let address = party.address.as_deref().unwrap_or_default();
    let mut lines = address.lines().map(str::trim).filter(|line| !line.is_empty());
    for element in ["cbc:StreetName", "cbc:AdditionalStreetName"] {
        if let Some(line) = lines.next() {
            xml.text(element, line);
        }
    }
    let rest = lines.collect::<Vec<_>>().join(", ");
    if !rest.is_empty() {
        xml.element("cac:AddressLine", |xml| xml.text("cbc:Line", &rest));
    }
    xml.element("cac:Country", |xml| {
        xml.text("cbc:IdentificationCode", party.country.as_deref().unwrap_or_default());
    });
}

fn push_totals(xml: &mut Xml, invoice: &Invoice, issued: &Issued<'_>) {
    xml.element("cac:TaxTotal", |xml| {
        push_amount(xml, "cbc:TaxAmount", invoice, invoice.tax_minor);
        xml.element("cac:TaxSubtotal", |xml| {
            push_amount(xml, "cbc:TaxableAmount", invoice, invoice.net_minor);
            push_amount(xml, "cbc:TaxAmount", invoice, invoice.tax_minor);
            xml.element("cac:TaxCategory", |xml| {
                push_category(xml, invoice, issued);
                if issued.tax == TaxCategory::NotSubject {
                    xml.text("cbc:TaxExemptionReason", "Not subject to tax");
                }
                push_scheme(xml, "VAT");
            });
        });
    });
    xml.element("cac:LegalMonetaryTotal", |xml| {
        push_amount(xml, "cbc:LineExtensionAmount", invoice, invoice.net_minor);
        push_amount(xml, "cbc:TaxExclusiveAmount", invoice, invoice.net_minor);
        push_amount(xml, "cbc:TaxInclusiveAmount", invoice, invoice.total_minor);
        push_amount(xml, "cbc:PayableAmount", invoice, invoice.total_minor);
    });
}

fn push_line(
    xml: &mut Xml,
    invoice: &Invoice,
    issued: &Issued<'_>,
    id: usize,
    line: &InvoiceLine,
    amount_minor: i64,
) {
    // Prices are never negative in EN 16931: what a line takes off is a negative quantity.
    let base_quantity = line.deliveries.max(1);
    let quantity = if amount_minor < 0 { -base_quantity } else { base_quantity };
    let unit = [("unitCode", "C62")];
    xml.text("cbc:ID", &id.to_string());
    if line.late {
        let note = format!("Late: deliveries of {}, counted after that month was closed.", line.usage_period);
        xml.text("cbc:Note", &note);
    }
    let element = match invoice.kind {
        InvoiceKind::Invoice => "cbc:InvoicedQuantity",
        InvoiceKind::CreditNote { .. } => "cbc:CreditedQuantity",
    };
    xml.text_with(element, &unit, &quantity.to_string());
    push_amount(xml, "cbc:LineExtensionAmount", invoice, amount_minor);
    xml.element("cac:Item", |xml| {
        xml.text("cbc:Name", &item_name(invoice, line));
        xml.element("cac:ClassifiedTaxCategory", |xml| {
            push_category(xml, invoice, issued);
            push_scheme(xml, "VAT");
        });
        let exact_amount = exact(line.amount_micros, invoice.currency);
        for (name, value) in [
            ("UsagePeriod", line.usage_period.as_str()),
            ("Deliveries", &line.deliveries.to_string()),
            ("BytesSent", &line.bytes_sent.to_string()),
            ("ExactAmount", &exact_amount),
        ] {
            xml.element("cac:AdditionalItemProperty", |xml| {
                xml.text("cbc:Name", name);
                xml.text("cbc:Value", value);
            });
        }
    });
    xml.element("cac:Price", |xml| {
        let price = whole(amount_minor, invoice.currency);
        xml.text_with(
            "cbc:PriceAmount",
            &[("currencyID", invoice.currency.code())],
            price.trim_start_matches('-'),
        );
        xml.text_with("cbc:BaseQuantity", &unit, &base_quantity.to_string());
    });
}

fn item_name(invoice: &Invoice, line: &InvoiceLine) -> String {
    let what = match line.kind {
        LineKind::Usage => format!("{} fee", invoice.fee),
        LineKind::Discount => format!("{} fee, discount", invoice.fee),
        LineKind::Correction => format!("{} fee, correction", invoice.fee),
    };
    let class = line.class.as_ref().map(|class| format!(", {class}")).unwrap_or_default();
    let path = line.path.as_ref().map(|path| format!(", {path}")).unwrap_or_default();
    format!("{what}{class}{path}, {}", line.usage_period)
}

fn push_amount(xml: &mut Xml, element: &str, invoice: &Invoice, minor: i64) {
    let code = invoice.currency.code();
    xml.text_with(element, &[("currencyID", code)], &whole(minor, invoice.currency));
}

fn push_category(xml: &mut Xml, invoice: &Invoice, issued: &Issued<'_>) {
    xml.text("cbc:ID", issued.tax.code());
    if issued.tax != TaxCategory::NotSubject {
        xml.text("cbc:Percent", &percent(invoice.tax_basis_points));
    }
}

fn push_scheme(xml: &mut Xml, id: &str) {
    xml.element("cac:TaxScheme", |xml| xml.text("cbc:ID", id));
}

/// 1000 -> `10`, 550 -> `5.5`.
pub(super) fn percent(basis_points: u32) -> String {
    let text = format!("{}.{:02}", basis_points / 100, basis_points % 100);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn is_japanese_registration(number: &str) -> bool {
    number.len() == 14 && number.starts_with('T') && number[1..].bytes().all(|b| b.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::super::samples;
    use super::*;

    fn text(invoice: &Invoice) -> String {
        String::from_utf8(write(invoice).unwrap()).unwrap()
    }

    #[test]
    fn lines_are_whole_and_their_exact_amounts_stand_beside_them() {
        let invoice = text(&samples::invoice());
        for part in [
            "<cbc:LineExtensionAmount currencyID=\"JPY\">125</cbc:LineExtensionAmount>",
            "<cbc:Value>124.691</cbc:Value>",
            "<cbc:LineExtensionAmount currencyID=\"JPY\">91</cbc:LineExtensionAmount>",
            "<cbc:Value>90.809</cbc:Value>",
            "<cbc:LineExtensionAmount currencyID=\"JPY\">216</cbc:LineExtensionAmount>",
            "<cbc:PayableAmount currencyID=\"JPY\">237</cbc:PayableAmount>",
            "largest remainder",
            "Late: deliveries of 2026-09",
            "Bob &amp; &lt;Sons&gt;",
        ] {
            assert!(invoice.contains(part), "{part} is not in {invoice}");
        }
        assert!(!text(&samples::invoice_of(Currency::Eur, 1900, &[3_000_000])).contains("largest remainder"));
    }

    #[test]
    fn a_discount_is_a_negative_quantity_at_a_positive_price() {
        let invoice = text(&samples::invoice_of(Currency::Eur, 1900, &[900_000_000, -250_000_000]));
        assert!(invoice.contains("<cbc:InvoicedQuantity unitCode=\"C62\">-12</cbc:InvoicedQuantity>"));
        assert!(invoice.contains("<cbc:PriceAmount currencyID=\"EUR\">2.50</cbc:PriceAmount>"));
        assert!(
            invoice.contains("<cbc:LineExtensionAmount currencyID=\"EUR\">-2.50</cbc:LineExtensionAmount>")
        );
    }

    #[test]
    fn documents_that_cannot_be_e_invoices_are_refused() {
        let sound = samples::invoice();
        let refused = |change: &dyn Fn(&mut Invoice)| {
            let mut invoice = sound.clone();
            change(&mut invoice);
            write(&invoice).unwrap_err().to_string()
        };
        assert!(refused(&|i| i.number = None).contains("is a draft"));
        assert!(refused(&|i| i.currency = Currency::Xdz).starts_with("XDZ is no currency of ISO 4217"));
        assert!(refused(&|i| i.customer.country = None).starts_with("customer.country is missing"));
        assert!(refused(&|i| i.issuer.country = Some("Japan".into())).contains("two capital letters"));
        assert!(refused(&|i| i.due_date = None).starts_with("due_date is missing"));
        assert!(refused(&|i| i.period_end = "2026-10-32".into()).starts_with("period_end \"2026-10-32\""));
        assert!(refused(&|i| i.issuer.registration_number = None).starts_with("issuer.registration_number"));
        assert!(refused(&|i| i.total_minor += 1).starts_with("total_minor is 238"));
        assert!(write(&samples::invoice_of(Currency::Jpy, 1000, &[])).is_err_and(|e| e == UblError::NoLines));
    }

    #[test]
    fn rates_are_shown_in_percent() {
        let shown = [0, 1000, 550, 1925, 10_000].map(percent);
        assert_eq!(shown, ["0", "10", "5.5", "19.25", "100"]);
    }
}
