"""Measurements that the documents quote; each prints both sides of its comparison."""
