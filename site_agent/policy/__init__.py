"""What the hospital permits: rules, their evaluation and their explanation.

Pure: it receives documents and values, and reads no file, no clock and no database. It denies what no rule permits.
"""
