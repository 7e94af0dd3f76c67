from rkd_hello import Crescendo, Hello

from rkd.testing import OneStep, check_loss, check_scheduler, check_trains, tiny_run


def test_promises():
    check_loss(Hello(T=2.0))
    check_scheduler(Crescendo(), terms=("clean", "robust"))


def test_it_trains():
    check_trains(tiny_run(Hello(), attack=OneStep(), schedulers={"crescendo": Crescendo()}))
