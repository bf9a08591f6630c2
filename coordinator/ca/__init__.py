"""The built-in certificate authority and the keys of the coordinator: who is who, decided here and nowhere else.

Knows certificates, key files and enrolment codes; knows no database, no network and no service.
"""
