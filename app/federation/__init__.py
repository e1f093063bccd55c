"""Federation: tokens of other issuers are exchanged for local ones, and logout is honoured both ways. Optional."""
