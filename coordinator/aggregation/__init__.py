"""The sum itself: add masked vectors as they stream by, take the masks away range by range, judge what is left.

Pure, and O(d) in memory whatever the cohort. Knows no site, no round and no store.
"""
