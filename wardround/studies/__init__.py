"""What a study is: a folder with a description, a run's specification and a program that makes the sites' data.

Known by the demonstration, which runs one, and by the benchmark, which measures one. Runs nothing itself.
"""
