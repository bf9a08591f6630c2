"""Generated from protos/fl_protocol/wire/v1 by `make proto`; not edited by hand."""
