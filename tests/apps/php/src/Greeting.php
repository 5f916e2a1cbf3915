<?php

namespace Shop;

class Greeting
{
    public static function text(): string
    {
        return 'Hello from PHP';
    }
}
