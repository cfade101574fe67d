"""The miniature world: small models from public data, with gates, to show every claim on."""
