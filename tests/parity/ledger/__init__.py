"""Every architecture of transformers, tried: ``python -m parity.ledger`` (``make parity``) writes the table of them."""
