"""The tests. (A package by this name that another library installs must not hide them.)"""
