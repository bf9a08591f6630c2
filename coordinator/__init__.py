"""The coordinator: schedules rounds among sites, adds masked updates, unmasks only their sum, keeps the evidence.

It trusts no site with another site's data and is trusted with none: it never holds a record, a key of a site or one
site's update in the clear.
"""
