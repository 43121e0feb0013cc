"""One rule a file; `tracetool.findings.registry` lists them."""
