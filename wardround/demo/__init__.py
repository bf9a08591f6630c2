"""A whole federation on one machine: a coordinator and several sites as processes of their own, from an empty folder.

Everything here goes through the three programs and REST, as people would type it; nothing reaches into their insides.
"""
