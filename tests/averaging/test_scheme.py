from swatool.averaging.scheme import unrolled


def test_unrolled_is_the_product_of_what_is_left():
    assert unrolled([0.3, 0.5, 0.25]) == (0.5 * 0.75, 0.5 * 0.75, 0.25)
    assert unrolled([0.0]) == (1,)
    assert unrolled([1.0, 1.0]) == (0, 1)
