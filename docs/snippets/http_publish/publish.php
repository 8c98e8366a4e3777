<?php
// composer require symfony/mercure symfony/http-client
require 'vendor/autoload.php';

use Symfony\Component\Mercure\Hub;
use Symfony\Component\Mercure\Jwt\StaticTokenProvider;
use Symfony\Component\Mercure\Update;

$hub = new Hub(getenv('MERCURE_URL'), new StaticTokenProvider(getenv('MERCURE_JWT')));
echo $hub->publish(new Update(
    topics: 'news',
    data: json_encode(['title' => 'from PHP']),
    private: true,
    type: 'headline',
)), "\n";
