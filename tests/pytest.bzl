"""One Bazel test for each pytest file, with no list of files to keep."""

def pytest_tests(deps, data = {}, size = "large"):
    """Declares a py_test for every *_test.py of the package.

    Args:
      deps: the libraries that the tests may import, the tested package and what it knows.
      data: file name of a test -> further files that it reads.
      size: Bazel's size of each, which sets the time limit.
    """
    golden = native.glob(["golden/**"])
    helpers = native.glob(["*.py"], exclude = ["*_test.py", "pytest_main.py"])
    for test in native.glob(["*_test.py"]):
        native.py_test(
            name = test[:-len(".py")],
            size = size,
            srcs = [test, "//tests:pytest_main.py"] + helpers,
            main = "//tests:pytest_main.py",
            args = ["$(rootpath %s)" % test],
            data = golden + data.get(test, []) + ["//:pyproject.toml"],
            deps = deps + ["//tests:support"],
        )
    native.filegroup(name = "tree", srcs = native.glob(["**"], exclude = ["**/__pycache__/**"]))
