//! The euro area's files (ISO 20022, as the European Payments Council's guidelines use it): credit transfers,
//! pain.001.001.09, and core direct debits, pain.008.001.08.
//!
//! One payment block a file. A bank that is not told by BIC is `NOTPROVIDED`: the IBAN suffices. Debits are always
//! recurrent (`RCUR`), which banks take for the first one, too.

use common::money::Currency;
use common::time::UnixMillis;

use super::account::{InvalidAccount, SepaAccount};
use super::{BankFileError, Bounds, Order, checked_date, checked_total, latin};
use crate::documents::amount::whole;
use crate::xml::Xml;

const BOUNDS: Bounds = Bounds {
    currency: Currency::Eur,
    amount_max: 99_999_999_999,
    // 18 digits, two of them cents.
    total_max: 999_999_999_999_999_999,
    // Banks take files of 50 MB or so; an order takes about a kilobyte.
    count_max: 50_000,
};

/// What a file says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message<'a> {
    /// 1 to 35 Latin characters. Banks refuse a second file with the same.
    pub id: &'a str,
    pub created: UnixMillis,
    /// Day of the payments, `YYYY-MM-DD`.
    pub date: &'a str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Transfer,
    Debit,
}

/// pain.001.001.09: pays each order from the debtor's account.
pub fn credit_transfers(
    message: Message<'_>,
    debtor: &SepaAccount,
    orders: &[Order<SepaAccount>],
) -> Result<Vec<u8>, BankFileError> {
    write(Kind::Transfer, message, debtor, orders)
}

/// pain.008.001.08: collects each order to the creditor's account; each needs its mandate, the creditor its
/// identifier.
pub fn direct_debits(
    message: Message<'_>,
    creditor: &SepaAccount,
    orders: &[Order<SepaAccount>],
) -> Result<Vec<u8>, BankFileError> {
    write(Kind::Debit, message, creditor, orders)
}

fn write(
    kind: Kind,
    message: Message<'_>,
    originator: &SepaAccount,
    orders: &[Order<SepaAccount>],
) -> Result<Vec<u8>, BankFileError> {
    checked_date("date", message.date)?;
    identifier("message id", message.id)?;
    let total = checked_total(orders, &BOUNDS)?;
    originator.check().map_err(BankFileError::Originator)?;
    if kind == Kind::Debit && originator.creditor_id.is_none() {
        return Err(BankFileError::OriginatorLacks { field: "creditor_id" });
    }
    for order in orders {
        identifier("reference", &order.reference)?;
        let reference = || order.reference.clone();
        order.account.check().map_err(|source| BankFileError::Account { reference: reference(), source })?;
        if kind == Kind::Debit && order.account.mandate.is_none() {
            return Err(BankFileError::NoMandate { reference: reference() });
        }
    }
    let name = holder(originator).map_err(BankFileError::Originator)?;
    let names: Vec<String> = orders
        .iter()
        .map(|order| {
            let wrong = |source| BankFileError::Account { reference: order.reference.clone(), source };
            holder(&order.account).map_err(wrong)
        })
        .collect::<Result<_, _>>()?;

    let (namespace, root) = match kind {
        Kind::Transfer => ("urn:iso:std:iso:20022:tech:xsd:pain.001.001.09", "CstmrCdtTrfInitn"),
        Kind::Debit => ("urn:iso:std:iso:20022:tech:xsd:pain.008.001.08", "CstmrDrctDbtInitn"),
    };
    let sums = |xml: &mut Xml| {
        xml.text("NbOfTxs", &orders.len().to_string());
        xml.text("CtrlSum", &whole(total, Currency::Eur));
    };
    Ok(Xml::document("Document", &[("xmlns", namespace)], |xml| {
        xml.element(root, |xml| {
            xml.element("GrpHdr", |xml| {
                xml.text("MsgId", message.id);
                xml.text("CreDtTm", &message.created.to_string());
                sums(xml);
                xml.element("InitgPty", |xml| xml.text("Nm", &name));
            });
            xml.element("PmtInf", |xml| {
                xml.text("PmtInfId", message.id);
                xml.text("PmtMtd", if kind == Kind::Transfer { "TRF" } else { "DD" });
                sums(xml);
                match kind {
                    Kind::Transfer => push_debtor(xml, message.date, originator, &name),
                    Kind::Debit => push_creditor(xml, message.date, originator, &name),
                }
                for (order, name) in orders.iter().zip(&names) {
                    match kind {
                        Kind::Transfer => push_transfer(xml, order, name),
                        Kind::Debit => push_debit(xml, order, name),
                    }
                }
            });
        });
    }))
}

/// Who pays the transfers of the block, and when.
fn push_debtor(xml: &mut Xml, date: &str, debtor: &SepaAccount, name: &str) {
    xml.element("PmtTpInf", |xml| push_code(xml, "SvcLvl", "SEPA"));
    xml.element("ReqdExctnDt", |xml| xml.text("Dt", date));
    xml.element("Dbtr", |xml| xml.text("Nm", name));
    push_account(xml, "DbtrAcct", debtor);
    push_bank(xml, "DbtrAgt", debtor);
    xml.text("ChrgBr", "SLEV");
}

/// Who collects the debits of the block, and when.
fn push_creditor(xml: &mut Xml, date: &str, creditor: &SepaAccount, name: &str) {
    xml.element("PmtTpInf", |xml| {
        push_code(xml, "SvcLvl", "SEPA");
        push_code(xml, "LclInstrm", "CORE");
        xml.text("SeqTp", "RCUR");
    });
    xml.text("ReqdColltnDt", date);
    xml.element("Cdtr", |xml| xml.text("Nm", name));
    push_account(xml, "CdtrAcct", creditor);
    push_bank(xml, "CdtrAgt", creditor);
    xml.text("ChrgBr", "SLEV");
    xml.element("CdtrSchmeId", |xml| {
        xml.element("Id", |xml| {
            xml.element("PrvtId", |xml| {
                xml.element("Othr", |xml| {
                    xml.text("Id", creditor.creditor_id.as_deref().unwrap_or_default());
                    xml.element("SchmeNm", |xml| xml.text("Prtry", "SEPA"));
                });
            });
        });
    });
}

fn push_transfer(xml: &mut Xml, order: &Order<SepaAccount>, name: &str) {
    xml.element("CdtTrfTxInf", |xml| {
        xml.element("PmtId", |xml| xml.text("EndToEndId", &order.reference));
        xml.element("Amt", |xml| push_amount(xml, order));
        if order.account.bic.is_some() {
            push_bank(xml, "CdtrAgt", &order.account);
        }
        xml.element("Cdtr", |xml| xml.text("Nm", name));
        push_account(xml, "CdtrAcct", &order.account);
        xml.element("RmtInf", |xml| xml.text("Ustrd", &order.reference));
    });
}

fn push_debit(xml: &mut Xml, order: &Order<SepaAccount>, name: &str) {
    xml.element("DrctDbtTxInf", |xml| {
        xml.element("PmtId", |xml| xml.text("EndToEndId", &order.reference));
        push_amount(xml, order);
        if let Some(mandate) = &order.account.mandate {
            xml.element("DrctDbtTx", |xml| {
                xml.element("MndtRltdInf", |xml| {
                    xml.text("MndtId", &mandate.id);
                    xml.text("DtOfSgntr", &mandate.signed);
                });
            });
        }
        push_bank(xml, "DbtrAgt", &order.account);
        xml.element("Dbtr", |xml| xml.text("Nm", name));
        push_account(xml, "DbtrAcct", &order.account);
        xml.element("RmtInf", |xml| xml.text("Ustrd", &order.reference));
    });
}

fn push_amount(xml: &mut Xml, order: &Order<SepaAccount>) {
    xml.text_with("InstdAmt", &[("Ccy", "EUR")], &whole(order.amount_minor, Currency::Eur));
}

fn push_account(xml: &mut Xml, element: &str, account: &SepaAccount) {
    xml.element(element, |xml| {
        xml.element("Id", |xml| xml.text("IBAN", &account.compact_iban()));
    });
}

fn push_bank(xml: &mut Xml, element: &str, account: &SepaAccount) {
    xml.element(element, |xml| {
        xml.element("FinInstnId", |xml| match &account.bic {
            Some(bic) => xml.text("BICFI", bic),
            None => xml.element("Othr", |xml| xml.text("Id", "NOTPROVIDED")),
        });
    });
}

fn push_code(xml: &mut Xml, element: &str, code: &str) {
    xml.element(element, |xml| xml.text("Cd", code));
}

fn holder(account: &SepaAccount) -> Result<String, InvalidAccount> {
    latin::encode(&account.holder).map_err(|source| {
        let given = account.holder.clone();
        InvalidAccount::Latin { field: "holder", given, source }
    })
}

fn identifier(what: &'static str, given: &str) -> Result<(), BankFileError> {
    if latin::is_identifier(given) {
        return Ok(());
    }
    Err(BankFileError::Identifier { what, given: given.to_owned(), rule: latin::IDENTIFIER_RULE })
}

#[cfg(test)]
mod tests {
    use super::super::account::tests::sepa;
    use super::*;

    const MESSAGE: Message<'_> =
        Message { id: "DOZO-2026-10", created: UnixMillis(1_793_545_200_000), date: "2026-11-30" };

    fn order(reference: &str, amount_minor: i64) -> Order<SepaAccount> {
        Order { reference: reference.into(), account: sepa(), currency: Currency::Eur, amount_minor }
    }

    fn text(file: Result<Vec<u8>, BankFileError>) -> String {
        String::from_utf8(file.unwrap()).unwrap()
    }

    #[test]
    fn sums_and_references_are_in_the_file() {
        let orders = [order("SP-1", 1), order("SP-2", 123_456)];
        for file in
            [credit_transfers(MESSAGE, &sepa(), &orders), direct_debits(MESSAGE, &sepa(), &orders)].map(text)
        {
            assert_eq!(file.matches("<CtrlSum>1234.57</CtrlSum>").count(), 2);
            assert_eq!(file.matches("<NbOfTxs>2</NbOfTxs>").count(), 2);
            assert!(file.contains("<InstdAmt Ccy=\"EUR\">0.01</InstdAmt>"));
            assert!(file.contains("<EndToEndId>SP-2</EndToEndId>"));
            assert!(file.contains("<Nm>Juergen + Soehne GmbH</Nm>"));
            assert!(file.contains("<IBAN>DE89370400440532013000</IBAN>"));
        }
        let debits = text(direct_debits(MESSAGE, &sepa(), &orders));
        assert!(debits.contains("<MndtId>DOZO-BOB-1</MndtId>"));
        assert!(debits.contains("<Id>DE98ZZZ09999999999</Id>"));
        let mut unknown_bank = order("SP-1", 1);
        unknown_bank.account.bic = None;
        assert!(text(direct_debits(MESSAGE, &sepa(), &[unknown_bank])).contains("NOTPROVIDED"));
    }

    #[test]
    fn orders_that_the_scheme_cannot_take_are_refused() {
        let refused = |originator: &SepaAccount, order: Order<SepaAccount>| {
            direct_debits(MESSAGE, originator, &[order]).unwrap_err().to_string()
        };
        let fine = || order("S-1", 1);
        let mut bare = fine();
        bare.account.mandate = None;
        assert!(refused(&sepa(), bare.clone()).starts_with("order S-1: the account has no mandate"));
        assert!(credit_transfers(MESSAGE, &sepa(), &[bare]).is_ok());
        let unnamed = SepaAccount { creditor_id: None, ..sepa() };
        assert!(refused(&unnamed, fine()).starts_with("the ordering party's account has no creditor_id"));
        let mut yen = fine();
        yen.currency = Currency::Jpy;
        assert_eq!(refused(&sepa(), yen), "order S-1 is in JPY, the file takes EUR alone");
        let mut wallet = fine();
        wallet.currency = Currency::Xdz;
        assert_eq!(refused(&sepa(), wallet), "order S-1 is in XDZ, the file takes EUR alone");
        assert!(refused(&sepa(), order("S-1", 100_000_000_000)).contains("between 1 and 99999999999"));
        assert!(refused(&sepa(), order("請求1", 1)).starts_with("reference \"請求1\" is not valid: 1 to 35"));
        let message = Message { id: "a//b", ..MESSAGE };
        let error = credit_transfers(message, &sepa(), &[fine()]).unwrap_err().to_string();
        assert!(error.starts_with("message id \"a//b\" is not valid"));
        let message = Message { date: "30.11.2026", ..MESSAGE };
        assert!(credit_transfers(message, &sepa(), &[fine()]).is_err());
    }
}
