"""What the HTTP API takes and gives, declared once: the handlers' parser and the OpenAPI document
are made from the same declarations."""
