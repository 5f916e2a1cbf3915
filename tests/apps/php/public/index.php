<?php

require __DIR__ . '/../vendor/autoload.php';
echo Shop\Greeting::text(), ', memory ', ini_get('memory_limit'), ', path ', parse_url($_SERVER['REQUEST_URI'], PHP_URL_PATH), "\n";
